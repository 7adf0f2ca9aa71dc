// The two directions of the resize: whole rows into weighted sums of rows, and along a row.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/render/call.h"
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

// The sums of the lanes of four vectors.
ISP_INLINE void sum_lanes(Vec a, Vec b, Vec c, Vec d, float* four) {
  // Each step adds up what stands side by side, of two vectors at once.
  const Vec ab = even(a, b) + odd(a, b), cd = even(c, d) + odd(c, d);
  Vec all = even(ab, cd) + odd(ab, cd);
  for (int left = kLanes / 4; left > 1; left /= 2) all = even(all, all) + odd(all, all);
  memcpy(four, &all, 4 * sizeof(float));
}

// A column of the picture, the lanes not added up yet. Reads whole vectors, but what is outside a tap's
// support adds nothing, not even its NaN.
struct ColumnSum {
  Vec channel[3] = {};

  ISP_MEMBER ColumnSum(const Taps& taps, int64_t j, int64_t first, const float* const* rows) {
    const float* weight = taps.weight + j * taps.stride;
    const int64_t from = taps.begin[j] - first, count = taps.end[j] - taps.begin[j];
    for (int64_t k = 0; k < count; k += kLanes) {
      const Vec w = load(weight + k);
      for (int c = 0; c < 3; ++c) {
        const Vec x = load(rows[c] + from + k);
        channel[c] += w * (w != 0.0f ? x : Vec{});
      }
    }
  }
};

// Columns [begin, end) of the picture from three source rows whose first element is source column
// `first`, four at a time; `out` has room for whole fours.
static void resize_columns(
    const Taps& taps, int64_t begin, int64_t end, int64_t first, const float* const* rows,
    float* const* out) {
  for (int64_t j = begin; j < end; j += 4) {
    const ColumnSum a(taps, j, first, rows), b(taps, at_most(j + 1, end - 1), first, rows);
    const ColumnSum c(taps, at_most(j + 2, end - 1), first, rows);
    const ColumnSum d(taps, at_most(j + 3, end - 1), first, rows);
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      sum_lanes(a.channel[k], b.channel[k], c.channel[k], d.channel[k], out[k] + j - begin);
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
