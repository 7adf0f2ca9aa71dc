// Colour matrix, clip and tone curve.
//
// With AVX-512, whose registers hold a table of 32 floats in two, a tone curve is a table of kSegments
// parabolas in x (sRGB), or in the square root of x (gamma, which is too steep at black, and from which
// smoothstep follows). Segments are an eighth to a quarter of their distance from black wide: they are
// told apart by the exponent and the two highest bits of the mantissa of x + 2^-8 (shrunk a little, so
// that it stays below 1). Table and error: tables.cpp. Elsewhere it is computed, see power.h. The log
// tone is computed everywhere, by simd.h's log2.
#pragma once

#include "cpu/render/call.h"
#include "cpu/render/power.h"
#include "cpu/render/rows.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

#if defined(__AVX512F__)
struct Table {
  Vec low, high;
};
ISP_INLINE Table load_table(const float* p) { return {load(p), load(p + 16)}; }
// Element index[k] & 31 of a table of 32 floats, for each lane k.
ISP_INLINE Vec look_up(const Table& table, Int index) {
  return (Vec)_mm512_permutex2var_ps((__m512)table.low, (__m512i)index, (__m512)table.high);
}
#endif

struct Colour {
  float matrix[3][3];
#if defined(__AVX512F__)
  Table constant, linear, square;
#endif
};

// What white is when it comes to the tone curve.
template <Tone tone>
constexpr float kWhite = 1.0f;
#if !defined(__AVX512F__)
template <>
constexpr float kWhite<Tone::srgb> = kSrgbWhite;
#endif

ISP_INLINE Colour colour_of(const Render& r, const float* matrix) {
  Colour colour;
  memcpy(colour.matrix, matrix, sizeof(colour.matrix));
#if defined(__AVX512F__)
  colour.constant = load_table(r.curve);
  colour.linear = load_table(r.curve + kSegments);
  colour.square = load_table(r.curve + 2 * kSegments);
#else
  if (r.tone == Tone::srgb) {
    for (auto& row : colour.matrix) {
      for (float& element : row) element *= kSrgbWhite;
    }
  }
#endif
  return colour;
}

// The tones of three x in [0, kWhite<tone>].
template <Tone tone>
ISP_INLINE void apply_tone(Vec* x, [[maybe_unused]] const Colour& colour) {
  if constexpr (tone == Tone::linear) return;
  if constexpr (tone == Tone::log) {
    for (int c = 0; c < 3; ++c) {
      // log2 does not keep NaN.
      const Vec y = 1.0f + kToneMu * x[c];
      x[c] = kTonePerOctave * (y == y ? log2(y) : y);
    }
    return;
  }
#if defined(__AVX512F__)
  for (int c = 0; c < 3; ++c) {
    Vec u = x[c];
    if constexpr (tone != Tone::srgb) u = square_root(max(broadcast(kDarkestTone), u));
    const Int segment = (Int)(u * kSegmentScale + kSegmentOffset) >> kSegmentShift;
    const Vec square = look_up(colour.square, segment), linear = look_up(colour.linear, segment);
    x[c] = look_up(colour.constant, segment) + u * (linear + u * square);
  }
#else
  Vec y[3];
  if constexpr (tone == Tone::srgb) {
    srgb_of(x, y);
  } else {
    for (int c = 0; c < 3; ++c) x[c] = max(broadcast(kDarkestTone), x[c]);
    gamma_of(x, y);
  }
  for (int c = 0; c < 3; ++c) x[c] = y[c];
#endif
  if constexpr (tone == Tone::smoothstep) {
    for (int c = 0; c < 3; ++c) x[c] = x[c] * x[c] * (3.0f - 2.0f * x[c]);
  }
}

// How many vectors of pixels are demosaiced and clipped before the first of them gets its tone. A pixel's
// way is long, and a processor with some hundred instructions in flight, full of one vector's, would wait
// for it: in two short steps many vectors are on their way (Malvar and sRGB, 12 MP to 224, one thread of a
// Zen 3: 35 ms, so 25). With 16 lanes most tones are a look-up, soon done, and this was not measured.
#if defined(__AVX512F__)
template <Tone tone>
constexpr int64_t kWaiting = 1;
#else
template <Tone tone>
constexpr int64_t kWaiting = tone == Tone::linear ? 1 : 16;
#endif

// The matrix times v, clipped.
template <Tone tone>
ISP_INLINE void clipped_colours(const Vec* v, const Colour& colour, Vec* out) {
  for (int c = 0; c < 3; ++c) {
    const float* m = colour.matrix[c];
    const Vec x = m[0] * v[0] + m[1] * v[1] + m[2] * v[2];
    out[c] = min(broadcast(kWhite<tone>), max(Vec{}, x));
  }
}

// The same with its tone.
template <Tone tone>
ISP_INLINE void finish_colours(const Vec* v, const Colour& colour, Vec* out) {
  clipped_colours<tone>(v, colour, out);
  apply_tone<tone>(out, colour);
}

// The three colours of superpixels from pair i on, from their planes; `matrix`: of the filter's four
// colours, [3, 4], or null where the two planes in the middle are one colour.
ISP_INLINE void superpixel_colours(const float* const* plane, const float* matrix, int64_t i, Vec* v) {
  const Vec p[4] = {load(plane[0] + i), load(plane[1] + i), load(plane[2] + i), load(plane[3] + i)};
  if (matrix == nullptr) {
    v[0] = p[0], v[1] = 0.5f * (p[1] + p[2]), v[2] = p[3];
    return;
  }
  for (int c = 0; c < 3; ++c) {
    const float* m = matrix + 4 * c;
    v[c] = m[0] * p[0] + m[1] * p[1] + m[2] * p[2] + m[3] * p[3];
  }
}

ISP_INLINE const float* planes_matrix(const Render& r, int64_t sample) {
  return r.planes == nullptr ? nullptr : r.planes + 12 * sample;
}

// Three rows of a picture in place: matrix, clip, tone and the teacher's normalisation. Whole vectors.
template <Tone tone>
static void colour_row(const Render& r, int64_t sample, int64_t count, float* const* rgb) {
  const Colour colour = colour_of(r, r.ccm + 9 * sample);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v[3] = {load(rgb[0] + i), load(rgb[1] + i), load(rgb[2] + i)};
    Vec finished[3];
    finish_colours<tone>(v, colour, finished);
    for (int c = 0; c < 3; ++c) store(rgb[c] + i, finished[c] * r.slope[c] + r.offset[c]);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
