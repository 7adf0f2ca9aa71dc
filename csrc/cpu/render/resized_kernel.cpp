// render, the general way: develop every sensor row that a piece needs, resize vertically by adding it
// to the output rows that it contributes to, then along the row.
//
// A piece is a tile of the picture, narrow enough that all of its rows stay in the second-level cache:
// a ring of 5 normalised sensor rows; one developed row (demosaiced and, where the resize is in display
// values, coloured); and the sums of the output rows that are unfinished. When the picture is smaller, a source row contributes to 2 or 3 output rows, so that there are at most 4 sums,
// in a ring; when it is taller, an output row is a sum of at most 3 developed rows, kept in a ring
// instead. Developed rows are as wide as the sensor and their sums too: the resize along the row then
// happens once for each row of the picture rather than for each of the sensor.
#include "cpu/render/develop.h"
#include "cpu/render/finish.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

constexpr int64_t kUnfinished = 4;  // sums, or developed rows

// How a developed row ends: as demosaiced, or with matrix, clip and a tone. It is [3][planes][length].
enum class Finish { camera, linear, srgb, gamma, smoothstep };

template <Finish finish>
ISP_INLINE void store_pixels(
    const Vec* v, const Colour& colour, const int* channel, int64_t channel_floats, float* out) {
  for (int c = 0; c < 3; ++c) {
    if constexpr (finish == Finish::camera) {
      store(out + channel[c] * channel_floats, v[c]);
    } else {
      constexpr Tone tone = static_cast<Tone>(static_cast<int>(finish) - 1);
      store(out + c * channel_floats, finish_colour<tone>(v, c, colour));
    }
  }
}

template <Demosaic method, bool colour_even, Finish finish>
void develop_pairs(
    const SensorRows& sensor_rows, int64_t pairs, const Colour& of_row, bool blue, float* out) {
  // Copies, which the stores below cannot change for all that the compiler knows.
  const SensorRows rows = sensor_rows;
  const Colour colour = of_row;
  const int channel[3] = {blue ? 2 : 0, 1, blue ? 0 : 2};
  const int64_t length = colour_length(pairs);
  for (int64_t i = 0; i < pairs; i += kLanes) {
    Vec in_even[3], in_odd[3];
    demosaic_pairs<method, colour_even>(rows, i, in_even, in_odd);
    store_pixels<finish>(in_even, colour, channel, 2 * length, out + i);
    store_pixels<finish>(in_odd, colour, channel, 2 * length, out + length + i);
  }
}

template <Finish finish>
void develop_bayer(Developer& d, int64_t source_row, float* out) {
  const BayerRow row = bayer_row(d, source_row);
  const auto develop =
      d.render->demosaic == Demosaic::bilinear
          ? (row.colour_even ? develop_pairs<Demosaic::bilinear, true, finish>
                         : develop_pairs<Demosaic::bilinear, false, finish>)
          : (row.colour_even ? develop_pairs<Demosaic::malvar, true, finish>
                         : develop_pairs<Demosaic::malvar, false, finish>);
  develop(row.rows, d.span.pairs, d.colour[row.blue], row.blue, out);
}

// One period of 2 x 2 sensor pixels is one pixel.
template <Finish finish>
void develop_superpixels(Developer& d, int64_t source_row, float* out) {
  const Render& r = *d.render;
  const float* plane[4];
  for (int site = 0; site < 4; ++site) {
    const int row = site / 2, column = site % 2;
    float* normalised = d.ring + row * 2 * d.span.length;
    if (column == 0) {
      normalise_row(r, d.levels, d.sample, r.top + 2 * source_row + row, d.span, d.widened,
                    normalised);
    }
    plane[site ^ (r.pattern[d.sample] & 3)] = normalised + column * d.span.length + kPad;
  }
  const Colour colour = d.colour[0];
  const int channel[3] = {0, 1, 2};
  const int64_t length = colour_length(d.span.pairs);
  for (int64_t i = 0; i < d.span.pairs; i += kLanes) {
    const Vec v[3] = {load(plane[0] + i), 0.5f * (load(plane[1] + i) + load(plane[2] + i)),
                      load(plane[3] + i)};
    store_pixels<finish>(v, colour, channel, length, out + i);
  }
}

template <Finish finish>
void develop(Developer& d, int64_t source_row, float* out) {
  if (d.render->demosaic == Demosaic::superpixel) {
    develop_superpixels<finish>(d, source_row, out);
  } else {
    develop_bayer<finish>(d, source_row, out);
  }
}

using Develop = void(Developer&, int64_t, float*);

Develop* developing(const Render& r) {
  if (r.resize_linear) return develop<Finish::camera>;
  switch (r.tone) {
    case Tone::linear:
      return develop<Finish::linear>;
    case Tone::srgb:
      return develop<Finish::srgb>;
    case Tone::gamma:
      return develop<Finish::gamma>;
    default:
      return develop<Finish::smoothstep>;
  }
}

// `colours` is [3][planes][colour_length]. After the tone curve the teacher's normalisation commutes
// with the resize, whose weights sum to 1, so it is done on the way.
void finish_row(Finisher& f, int64_t row, const float* colours) {
  const Render& r = *f.render;
  const int64_t length = colour_length(f.span.pairs);
  for (int c = 0; c < 3; ++c) {
    const float slope = r.resize_linear ? 1.0f : r.slope[c];
    const float offset = r.resize_linear ? 0.0f : r.offset[c];
    const float* plane = colours + c * f.planes * length;
    if (f.planes == 2) {
      interleave_row(plane, plane + length, f.span.pairs, slope, offset, f.wide[c]);
    } else {
      for (int64_t i = 0; i < length; i += kLanes) {
        store(f.wide[c] + i, load(plane + i) * slope + offset);
      }
    }
  }
  finish_wide(f, row);
}

}  // namespace

void render_sizes(const Render& r, int64_t source_columns, int64_t columns, int64_t* workspace) {
  const int64_t pairs = most_pairs(r, source_columns);
  *workspace = developer_floats(pairs) + finisher_floats(pairs, columns) +
               (kUnfinished + 1) * 6 * colour_length(pairs);
}

void render(const Render& r, const RenderPiece& piece, float* workspace) {
  Finisher finisher = make_finisher(r, piece, workspace);
  const Span& span = finisher.span;
  workspace += finisher_floats(span.pairs, piece.column_end - piece.column_begin);
  Developer developer = make_developer(r, piece, span, workspace);
  workspace += developer_floats(span.pairs);
  Develop* develop_row = developing(r);
  const int64_t row_floats = 3 * finisher.planes * colour_length(span.pairs);
  float *single = workspace, *ring = workspace + row_floats;  // [kUnfinished][row_floats]
  const auto in_ring = [&](int64_t i) { return ring + i % kUnfinished * row_floats; };

  const Taps& taps = r.rows;
  const bool taller = taps.target > taps.source;
  int64_t unfinished = piece.row_begin;  // the first output row that is
  for (int64_t y = taps.begin[piece.row_begin]; y < taps.end[piece.row_end - 1]; ++y) {
    float* developed = taller ? in_ring(y) : single;
    develop_row(developer, y, developed);
    if (taps.identity) {
      finish_row(finisher, y, developed);
    } else if (taller) {
      for (; unfinished < piece.row_end && taps.end[unfinished] == y + 1; ++unfinished) {
        for (int64_t k = taps.begin[unfinished]; k <= y; ++k) {
          const float weight = taps.weight[unfinished * taps.stride + k - taps.begin[unfinished]];
          add_row(in_ring(k), weight, k == taps.begin[unfinished], row_floats, single);
        }
        finish_row(finisher, unfinished, single);
      }
    } else {
      for (int64_t i = unfinished; i < piece.row_end && taps.begin[i] <= y; ++i) {
        const float weight = taps.weight[i * taps.stride + y - taps.begin[i]];
        add_row(developed, weight, y == taps.begin[i], row_floats, in_ring(i));
      }
      for (; unfinished < piece.row_end && taps.end[unfinished] == y + 1; ++unfinished) {
        finish_row(finisher, unfinished, in_ring(unfinished));
      }
    }
  }
  flush(finisher.writer);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
