// unprocess: what isp_distill/ops/reference.py computes, bit for bit, in one pass over the picture.
//
// A tile is two rows of some columns. Its six rows of display values first become linear light, which
// lies in the first-level cache; then every 2 * kLanes columns of both rows go through colour matrix,
// inverse gains, noise and quantisation in registers, as they lie in memory: a site's colour is chosen
// by lane. Both loops wait for the arithmetic units, not for memory.
#include "cpu/distill_loss/columns.h"
#include "cpu/unprocess/sensor.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

ISP_INLINE Vec clamp_to_one(Vec x) { return min(max(x, Vec{}), broadcast(1.0f)); }

// `count` display values, whole vectors, to linear light: inverse smoothstep, then inverse gamma. NaN
// counts as black. Two loops, since one's chain of operations is so long that the processor's window of
// instructions would hold too few vectors to keep its arithmetic units busy.
void linearise(const float* display, int64_t count, float* light) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(light + i, inverse_smoothstep(clamp_to_one(load(display + i))));
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    store(light + i, exp2(2.2f * log2(max(load(light + i), broadcast(1e-8f)))));
  }
}

// A tile's light, and what the sensor makes of it where a row ends within a vector.
struct Tile {
  float light[2][3][kTileColumns];
  uint16_t ends[2][2 * kLanes];
};

// Of all 256 values of a byte.
void fill_table(float* table) {
  for (int i = 0; i < 256; ++i) table[i] = (float)i / 255.0f;
  linearise(table, 256, table);
}

// One colour of one row of a tile.
void make_light(
    const Unprocess& u, const void* row, int64_t begin, int64_t count, const float* table, float* out) {
  const int64_t whole = whole_vectors(count);
  if (u.type == Element::uint8) {
    const uint8_t* p = static_cast<const uint8_t*>(row) + begin * u.column;
    for (int64_t i = 0; i < count; ++i) out[i] = table[p[i * u.column]];
    for (int64_t i = count; i < whole; ++i) out[i] = 0;
    return;
  }
  const float* source = out;
  if (u.type == Element::float32 && u.column == 1 && whole == count) {
    source = static_cast<const float*>(row) + begin;
  } else {
    for (int64_t i = count; i < whole; ++i) out[i] = 0;
    read_columns(row, u.type, begin, u.column, count, out);
  }
  linearise(source, whole, out);
}

// One sample's camera, along the two rows of a period.
struct Camera {
  const float* matrix;
  Int green[2], blue[2];  // all bits of a lane set where its site is green; where the row holds blue
  Vec gains[2];

  Camera(const Unprocess& u, int64_t n) : matrix(u.rgb_to_camera + 9 * n) {
    const int64_t pattern = u.sensor.pattern[n] & 3;
    const float* rgb = u.gains + 3 * n;
    const float planes[4] = {rgb[0], rgb[1], rgb[1], rgb[2]};
    for (int row = 0; row < 2; ++row) {
      gains[row] = along_row(planes, pattern, row);
      for (int i = 0; i < kLanes; ++i) {
        const int64_t plane = pattern ^ (2 * row + i % 2);
        green[row][i] = plane == 1 || plane == 2 ? -1 : 0;
        blue[row][i] = plane >= 2 ? -1 : 0;
      }
    }
  }

  // What the site of each lane sees, before its noise, in [0, 1].
  ISP_INLINE Vec see(Vec r, Vec g, Vec b, const float* m, Int is_green, Int is_blue, Vec gain) {
    const Vec red = m[0] * r + m[1] * g + m[2] * b;
    const Vec green = m[3] * r + m[4] * g + m[5] * b;
    const Vec blue = m[6] * r + m[7] * g + m[8] * b;
    const Vec mean = (red + green + blue) * (1.0f / 3.0f);
    const Vec over = max(mean - 0.9f, Vec{}) * 10.0f, bright = over * over;
    const Vec safe = max(bright + (1.0f - bright) * gain, gain);
    return clamp_to_one((is_green ? green : is_blue ? blue : red) * safe);
  }
};

template <bool noisy>
void run(const Unprocess& u, const PeriodRows& rows, Tile& tile, const float* table) {
  const Sensor& sensor = u.sensor;
  const SensorOfSample of_sample(sensor, rows.sample);
  const Camera camera(u, rows.sample);
  const char* picture = static_cast<const char*>(u.rgb);
  const int64_t size = size_of(u.type);
  for (int64_t period_row = rows.begin; period_row < rows.end; ++period_row) {
    uint16_t* top = sensor.out + (rows.sample * sensor.height + 2 * period_row) * sensor.width;
    uint16_t* bottom = top + sensor.width;
    for (int64_t begin = 0; begin < sensor.width; begin += kTileColumns) {
      const int64_t left = sensor.width - begin, count = left < kTileColumns ? left : kTileColumns;
      for (int row = 0; row < 2; ++row) {
        for (int c = 0; c < 3; ++c) {
          const int64_t at =
              rows.sample * u.sample + c * u.channel + (2 * period_row + row) * u.row;
          make_light(u, picture + at * size, begin, count, table, tile.light[row][c]);
        }
      }
      for (int64_t i = 0; i < count; i += 2 * kLanes) {
        Vec x[2][2];
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            const float(&light)[3][kTileColumns] = tile.light[row];
            const int64_t at = i + half * kLanes;
            x[row][half] =
                Camera::see(load(light[0] + at), load(light[1] + at), load(light[2] + at),
                            camera.matrix, camera.green[row], camera.blue[row], camera.gains[row]);
          }
        }
        const int64_t period = period_row * (sensor.width / 2) + (begin + i) / 2;
        if (count - i >= 2 * kLanes) {
          expose_sensor<noisy>(of_sample, x, period, top + begin + i, bottom + begin + i);
          continue;
        }
        expose_sensor<noisy>(of_sample, x, period, tile.ends[0], tile.ends[1]);
        memcpy(top + begin + i, tile.ends[0], 2 * (count - i));
        memcpy(bottom + begin + i, tile.ends[1], 2 * (count - i));
      }
    }
  }
}

}  // namespace

void unprocess(const Unprocess& u, const PeriodRows& rows) {
  static_assert(kTileColumns % (2 * kLanes) == 0, "tiles are whole vectors");
  Tile tile;
  float table[256];
  if (u.type == Element::uint8) fill_table(table);
  if (u.sensor.shot) {
    run<true>(u, rows, tile, table);
  } else {
    run<false>(u, rows, tile, table);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
