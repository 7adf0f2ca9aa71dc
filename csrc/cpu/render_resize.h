// The two directions of the resize: whole rows into weighted sums of rows, and along a row.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/render.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// sum = or += weight * row; count is a multiple of kLanes.
ISP_INLINE void add_row(const float* row, float weight, bool first, int64_t count, float* sum) {
  if (first) {
    for (int64_t i = 0; i < count; i += kLanes) store(sum + i, weight * load(row + i));
  } else {
    for (int64_t i = 0; i < count; i += kLanes) store(sum + i, load(sum + i) + weight * load(row + i));
  }
}

// Even and odd columns to consecutive ones.
ISP_INLINE void store_pairs(float* out, Vec even_columns, Vec odd_columns) {
  store(out, interleave_low(even_columns, odd_columns));
  store(out + kLanes, interleave_high(even_columns, odd_columns));
}

// Two planes to consecutive columns, times slope plus offset; writes whole vectors.
ISP_INLINE void interleave_row(
    const float* even_plane, const float* odd_plane, int64_t pairs, float slope, float offset,
    float* out) {
  for (int64_t i = 0; i < pairs; i += kLanes) {
    const Vec a = load(even_plane + i) * slope + offset, b = load(odd_plane + i) * slope + offset;
    store_pairs(out + 2 * i, a, b);
  }
}

// The sum of a vector's lanes, folded four at a time.
ISP_INLINE float sum_lanes(Vec x) {
  typedef float Quad __attribute__((vector_size(16)));
  Quad quads[kLanes / 4];
  memcpy(quads, &x, sizeof(x));
  for (int k = 1; k < kLanes / 4; ++k) quads[0] += quads[k];
  return (quads[0][0] + quads[0][1]) + (quads[0][2] + quads[0][3]);
}

// Columns [begin, end) of the picture from three source rows whose first element is source column
// `first`. Reads whole vectors, but a column outside a tap's support adds nothing, not even its NaN.
static void resize_columns(
    const Taps& taps, int64_t begin, int64_t end, int64_t first, const float* const* rows,
    float* const* out) {
  for (int64_t j = begin; j < end; ++j) {
    const float* weight = taps.weight + j * taps.stride;
    const int64_t from = taps.begin[j] - first, count = taps.end[j] - taps.begin[j];
    Vec total[3] = {};
    for (int64_t k = 0; k < count; k += kLanes) {
      const Vec w = load(weight + k);
      for (int c = 0; c < 3; ++c) {
        const Vec x = load(rows[c] + from + k);
        total[c] += w * (w != 0.0f ? x : Vec{});
      }
    }
    for (int c = 0; c < 3; ++c) out[c][j - begin] = sum_lanes(total[c]);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
