// expose: what isp_distill/ops/reference.py computes, bit for bit, in one pass over the mosaic.
//
// Two rows of a tile's columns are read as floats, then 2 * kLanes columns of both are scaled, noised
// and quantised in registers, as they lie in memory.
#include "cpu/distill_loss/columns.h"
#include "cpu/unprocess/sensor.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

void expose(const Expose& e, const PeriodRows& rows) {
  static_assert(kTileColumns % (2 * kLanes) == 0, "tiles are whole vectors");
  const Sensor& sensor = e.sensor;
  const SensorOfSample of_sample(sensor, rows.sample);
  const Vec factor = broadcast(e.factor[rows.sample]);
  const Vec unit[2] = {1.0f / of_sample.scale[0], 1.0f / of_sample.scale[1]};
  const char* mosaic = static_cast<const char*>(e.mosaic);
  float values[2][kTileColumns] = {};
  uint16_t ends[2][2 * kLanes];
  for (int64_t period_row = rows.begin; period_row < rows.end; ++period_row) {
    uint16_t* top = sensor.out + (rows.sample * sensor.height + 2 * period_row) * sensor.width;
    uint16_t* bottom = top + sensor.width;
    for (int64_t begin = 0; begin < sensor.width; begin += kTileColumns) {
      const int64_t left = sensor.width - begin, count = left < kTileColumns ? left : kTileColumns;
      for (int row = 0; row < 2; ++row) {
        const int64_t at = rows.sample * e.sample + (2 * period_row + row) * e.row;
        read_columns(mosaic + at * size_of(e.type), e.type, begin, e.column, count, values[row]);
      }
      for (int64_t i = 0; i < count; i += 2 * kLanes) {
        Vec x[2][2];
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            const Vec value = load(values[row] + i + half * kLanes);
            x[row][half] = (value - of_sample.black[row]) * unit[row] * factor;
          }
        }
        const int64_t period = period_row * (sensor.width / 2) + (begin + i) / 2;
        if (count - i >= 2 * kLanes) {
          expose_sensor<true>(of_sample, x, period, top + begin + i, bottom + begin + i);
          continue;
        }
        expose_sensor<true>(of_sample, x, period, ends[0], ends[1]);
        memcpy(top + begin + i, ends[0], 2 * (count - i));
        memcpy(bottom + begin + i, ends[1], 2 * (count - i));
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
