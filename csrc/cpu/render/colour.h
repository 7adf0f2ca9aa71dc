// Colour matrix, clip and tone curve.
//
// A tone curve is a table of kSegments parabolas in x (sRGB), or in the square root of x (gamma, which
// is too steep at black, and from which smoothstep follows). Segments are an eighth to a quarter of
// their distance from black wide: they are told apart by the exponent and the two highest bits of the
// mantissa of x + 2^-8 (shrunk a little, so that it stays below 1). Table and error: tables.cpp.
#pragma once

#include "cpu/render/call.h"
#include "cpu/render/rows.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// Element index[k] & 31 of a table of 32 floats, for each lane k.
#if defined(__AVX512F__)
struct Table {
  Vec low, high;
};
ISP_INLINE Table load_table(const float* p) { return {load(p), load(p + 16)}; }
ISP_INLINE Vec look_up(const Table& table, Int index) {
  return (Vec)_mm512_permutex2var_ps((__m512)table.low, (__m512i)index, (__m512)table.high);
}
#else
struct Table {
  const float* values;
};
ISP_INLINE Table load_table(const float* p) { return {p}; }
ISP_INLINE Vec look_up(const Table& table, Int index) {
  index &= 31;
#if defined(__AVX2__)
  return (Vec)_mm256_i32gather_ps(table.values, (__m256i)index, 4);
#else
  return Vec{table.values[index[0]], table.values[index[1]], table.values[index[2]],
             table.values[index[3]]};
#endif
}
#endif

struct Colour {
  float matrix[3][3];
  Table constant, linear, square;
};

ISP_INLINE Colour colour_of(const Render& r, const float* matrix) {
  Colour colour;
  memcpy(colour.matrix, matrix, sizeof(colour.matrix));
  colour.constant = load_table(r.curve);
  colour.linear = load_table(r.curve + kSegments);
  colour.square = load_table(r.curve + 2 * kSegments);
  return colour;
}

template <Tone tone>
ISP_INLINE Vec apply_tone(Vec x, const Colour& colour) {
  if constexpr (tone == Tone::linear) return x;
  if constexpr (tone != Tone::srgb) x = square_root(max(broadcast(kDarkestTone), x));
  const Int segment = (Int)(x * kSegmentScale + kSegmentOffset) >> kSegmentShift;
  const Vec square = look_up(colour.square, segment), linear = look_up(colour.linear, segment);
  const Vec y = look_up(colour.constant, segment) + x * (linear + x * square);
  return tone == Tone::smoothstep ? y * y * (3.0f - 2.0f * y) : y;
}

// Channel `channel` of matrix times v, clipped, with its tone.
template <Tone tone>
ISP_INLINE Vec finish_colour(const Vec* v, int channel, const Colour& colour) {
  const float* m = colour.matrix[channel];
  return apply_tone<tone>(clip(m[0] * v[0] + m[1] * v[1] + m[2] * v[2]), colour);
}

// Three rows of a picture in place: matrix, clip, tone and the teacher's normalisation. Whole vectors.
template <Tone tone>
static void colour_row(const Render& r, int64_t sample, int64_t count, float* const* rgb) {
  const Colour colour = colour_of(r, r.ccm + 9 * sample);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v[3] = {load(rgb[0] + i), load(rgb[1] + i), load(rgb[2] + i)};
    for (int c = 0; c < 3; ++c) {
      store(rgb[c] + i, finish_colour<tone>(v, c, colour) * r.slope[c] + r.offset[c]);
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
