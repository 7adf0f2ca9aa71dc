// The integer sums that segments.h is made of: those of a segment's rows, kLanes pairs wide.
//
// Two rows of a parity are taken at a time: their values side by side in a word are what the integer
// multiply-add wants, by (1, 1) for S and by both rows' weights for M. That leaves the columns in the
// order of the processor's unpack instructions, and they are put in order once, as floats.
//
// Integers cannot be clipped at 1, since gain / (white - black) leaves a fraction: 1 is at
// most + excess sensor steps. The largest value of a block is looked at, and only where it is above
// `most` is the block read again, for the values clipped at `most` and for how many were clipped.
#pragma once

#include "cpu/render/halves.h"
#include "cpu/mosaic.h"
#include "cpu/render/rows.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// What a sample's sites are, even and odd columns of the even and the odd rows.
struct WholeLevels {
  Word black[2], most[2];  // of a sensor row's pairs
  float excess[2][2], steps[2][2], scale[2][2];  // steps: most + excess
};

static WholeLevels whole_levels(const Levels& levels) {
  WholeLevels whole;
  for (int row = 0; row < 2; ++row) {
    uint32_t most[2];
    for (int column = 0; column < 2; ++column) {
      const float scale = levels.scale[2 * row + column];
      const double steps = 1.0 / scale;
      most[column] = static_cast<uint32_t>(steps);
      whole.excess[row][column] = static_cast<float>(steps - most[column]);
      whole.steps[row][column] = static_cast<float>(steps);
      whole.scale[row][column] = scale;
    }
    const float* black = levels.black + 2 * row;
    whole.black[row] = both_halves(static_cast<uint32_t>(black[0]), static_cast<uint32_t>(black[1]));
    whole.most[row] = both_halves(most[0], most[1]);
  }
  return whole;
}

// The rows of one parity of a segment.
struct SegmentRows {
  const uint16_t* pairs;  // kLanes pairs of the first of them
  int64_t step, count;    // elements from one to the next; how many
  int64_t ahead;          // elements to the same row of the next segment, which is fetched by the way
  int weight, weight_step;
};

// S and M of the columns in rows_low and in rows_high.
struct SegmentSums {
  Int plain[2] = {}, weighted[2] = {};
};

// Adds the rows y and z (two values in each word), whose weights are alike in every word.
ISP_INLINE void add_rows(Word y, Word z, Word weights, SegmentSums& sums) {
  const Word columns[2] = {rows_low(y, z), rows_high(y, z)};
  for (int half = 0; half < 2; ++half) {
    sums.plain[half] += multiply_halves(columns[half], both_halves(1, 1));
    sums.weighted[half] += multiply_halves(columns[half], weights);
  }
}

// Sums to floats, even and odd columns.
ISP_INLINE void in_order(const Int (&sums)[2], Vec* columns) {
  const Vec low = __builtin_convertvector(sums[0], Vec), high = __builtin_convertvector(sums[1], Vec);
  columns[0] = even_columns(low, high);
  columns[1] = odd_columns(low, high);
}

// Runs use(y, z, weights) for two rows at a time, the last one perhaps alone.
template <class Use>
ISP_INLINE void for_two_rows(const SegmentRows& rows, Use use) {
  const uint16_t* p = rows.pairs;
  Word weights = both_halves(rows.weight, rows.weight + rows.weight_step);
  const Word two_rows = both_halves(2 * rows.weight_step, 2 * rows.weight_step);
  int64_t k = 0;
#pragma GCC unroll 4
  for (; k + 1 < rows.count; k += 2, p += 2 * rows.step, weights += two_rows) {
    __builtin_prefetch(p + rows.ahead, 0, 2);
    __builtin_prefetch(p + rows.ahead + rows.step, 0, 2);
    use(load_words(p), load_words(p + rows.step), weights);
  }
  if (k == rows.count) return;
  __builtin_prefetch(p + rows.ahead, 0, 2);
  use(load_words(p), Word{}, weights);
}

// S and M of a parity's rows as floats, in sensor steps. `clips`: whether the same columns were clipped
// in the segment above, where it is likely that they are again; becomes whether they are here.
ISP_INLINE void segment_sums(const SegmentRows& rows, const WholeLevels& levels, int parity, bool& clips,
                             Vec* plain, Vec* weighted) {
  const Word black = levels.black[parity], most = levels.most[parity];
  SegmentSums sums;
  if (!clips) {
    Word largest = {};
    for_two_rows(rows, [&](Word x0, Word x1, Word weights) __attribute__((always_inline)) {
      const Word y0 = subtract_halves(x0, black), y1 = subtract_halves(x1, black);
      largest = larger_halves(largest, larger_halves(y0, y1));
      add_rows(y0, y1, weights, sums);
    });
    clips = any(subtract_halves(largest, most));
    if (__builtin_expect(!clips, 1)) {
      in_order(sums.plain, plain);
      in_order(sums.weighted, weighted);
      return;
    }
    sums = {};
  }
  // How many values of a column are clipped, and their weights: both fit 16 bits.
  Word count = {}, weight = {};
  Word weight0 = both_halves(rows.weight, rows.weight);
  const Word one_row = both_halves(rows.weight_step, rows.weight_step);
  for_two_rows(rows, [&](Word x0, Word x1, Word weights) __attribute__((always_inline)) {
    const Word y0 = subtract_halves(x0, black), y1 = subtract_halves(x1, black);
    const Word weight1 = weight0 + one_row;
    count = add_where_larger(count, y0, most, both_halves(1, 1));
    weight = add_where_larger(weight, y0, most, weight0);
    count = add_where_larger(count, y1, most, both_halves(1, 1));
    weight = add_where_larger(weight, y1, most, weight1);
    weight0 = weight1 + one_row;
    add_rows(smaller_halves(y0, most), smaller_halves(y1, most), weights, sums);
  });
  clips = any(count);
  in_order(sums.plain, plain);
  in_order(sums.weighted, weighted);
  Vec counts[2], weights[2];
  split_pair<Element::uint16>(count, &counts[0], &counts[1]);
  split_pair<Element::uint16>(weight, &weights[0], &weights[1]);
  for (int column = 0; column < 2; ++column) {
    const float excess = levels.excess[parity][column];
    plain[column] += excess * counts[column];
    weighted[column] += excess * weights[column];
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
