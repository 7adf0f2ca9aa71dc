// The six vertical sums of render_folded_kernel.cpp, from whole sensor values.
//
// The triangles v of neighbouring output rows have their corners at the same heights: at the centres of
// the output rows. From one centre to the next lies a segment of sensor rows, and in it every v is linear
// in the row. So two integer sums of a segment, for its even and its odd sensor rows apart,
//
//   S = sum of y[r],  M = sum of (r - first) y[r],  y = value above black,
//
// are all that its rows contribute to anything, and they stay in registers while the segment is read:
// of 16-bit values, two rows at a time, by the integer multiply-add. The corrections C1 and C2 of an
// output row are those of its three corners, 1, -2 and 1 times what the four sensor rows around a corner
// say. Sums, corrections and the sums of the segment before are combined in registers and stored once
// for each row of the picture.
//
// Integers cannot be clipped at 1, since gain / (white - black) leaves a fraction: 1 is at
// most + excess sensor steps. The largest value of a block is looked at, and only where it is above
// `most` is the block read again, for the values clipped at `most` and for how many were clipped.
#pragma once

#include <math.h>

#include "cpu/render_rows.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// ------------------------------------------------- two 16-bit values in each word of a vector

typedef uint16_t Halves __attribute__((vector_size(4 * kLanes), may_alias));

// a - b, at least 0.
ISP_INLINE Word subtract_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Word)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Word)_mm256_subs_epu16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Word)_mm_subs_epu16((__m128i)a, (__m128i)b);
#else
  const Halves x = (Halves)a, y = (Halves)b;
  return (Word)(x > y ? x - y : Halves{});
#endif
}

ISP_INLINE Word larger_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Word)_mm512_max_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Word)_mm256_max_epu16((__m256i)a, (__m256i)b);
#else
  return (Word)((Halves)subtract_halves(a, b) + (Halves)b);
#endif
}

ISP_INLINE Word smaller_halves(Word a, Word b) {
  return (Word)((Halves)a - (Halves)subtract_halves(a, b));
}

// Of signed values: the sum of the two products in each word.
ISP_INLINE Int multiply_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Int)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Int)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const auto low = [](Word w) { return (Int)(w << 16) >> 16; };
  const auto high = [](Word w) { return (Int)w >> 16; };
  return low(a) * low(b) + high(a) * high(b);
#endif
}

ISP_INLINE bool any(Word w) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)w, (__m512i)w) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)w, (__m256i)w) == 0;
#else
  uint64_t parts[kLanes / 2], all = 0;
  memcpy(parts, &w, sizeof(w));
  for (uint64_t part : parts) all |= part;
  return all != 0;
#endif
}

ISP_INLINE Word both_halves(uint32_t even_column, uint32_t odd_column) {
  return (even_column | odd_column << 16) - Word{};
}

// ---------------------------------------------------------------------------- of one block of columns

// What a sample's sites are, even and odd columns of the even and the odd rows.
struct WholeLevels {
  Word black[2], most[2];  // of a sensor row's pairs
  float excess[2][2], scale[2][2];
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
      whole.scale[row][column] = scale;
    }
    const float* black = levels.black + 2 * row;
    whole.black[row] = both_halves(static_cast<uint32_t>(black[0]), static_cast<uint32_t>(black[1]));
    whole.most[row] = both_halves(most[0], most[1]);
  }
  return whole;
}

// Whether a sample's values are 16-bit integers, and those between black and white signed ones.
static bool are_whole(const Render& r, const Levels& levels) {
  if (r.mosaic_type != Element::uint16) return false;
  for (int site = 0; site < 4; ++site) {
    const float black = levels.black[site], steps = 1.0f / levels.scale[site];
    if (!(black >= 0 && black <= 65535 && black == floorf(black))) return false;
    if (!(steps >= 1 && steps < 32768)) return false;
  }
  return true;
}

// The rows of one parity of a segment.
struct SegmentRows {
  const uint16_t* pairs;  // kLanes pairs of the first of them
  int64_t step, count;    // elements from one to the next; how many
  int64_t ahead;          // elements to the same row of the next segment, which is fetched by the way
  int weight, weight_step;
};

// S and M of the even and of the odd columns.
struct SegmentSums {
  Int plain[2], weighted[2];
};

template <bool fetches, class Value>
ISP_INLINE SegmentSums sums_of_rows(const SegmentRows& rows, Value value) {
  SegmentSums sums = {};
  const Word low = both_halves(0xffff, 0), ones = both_halves(1, 1);
  const auto add = [&](Word y, Word z, Word weights) __attribute__((always_inline)) {
    const Word columns[2] = {(y & low) | (z << 16), (y >> 16) | (z & ~low)};
    for (int column = 0; column < 2; ++column) {
      sums.plain[column] += multiply_halves(columns[column], ones);
      sums.weighted[column] += multiply_halves(columns[column], weights);
    }
  };
  const uint16_t* p = rows.pairs;
  Word weights = both_halves(rows.weight, rows.weight + rows.weight_step);
  const Word two_rows = both_halves(2 * rows.weight_step, 2 * rows.weight_step);
  int64_t k = 0;
  for (; k + 1 < rows.count; k += 2, p += 2 * rows.step, weights += two_rows) {
    if (fetches) {
      __builtin_prefetch(p + rows.ahead, 0, 2);
      __builtin_prefetch(p + rows.ahead + rows.step, 0, 2);
    }
    add(value(load_words(p)), value(load_words(p + rows.step)), weights);
  }
  if (k < rows.count) {
    if (fetches) __builtin_prefetch(p + rows.ahead, 0, 2);
    add(value(load_words(p)), Word{}, weights);
  }
  return sums;
}

// S and M of a parity's rows as floats, in sensor steps.
ISP_INLINE void segment_sums(
    const SegmentRows& rows, const WholeLevels& levels, int parity, Vec* plain, Vec* weighted) {
  const Word black = levels.black[parity], most = levels.most[parity];
  Word largest = {};
  SegmentSums sums = sums_of_rows<true>(rows, [&](Word x) __attribute__((always_inline)) {
    const Word y = subtract_halves(x, black);
    largest = larger_halves(largest, y);
    return y;
  });
  if (__builtin_expect(!any(subtract_halves(largest, most)), 1)) {
    for (int column = 0; column < 2; ++column) {
      plain[column] = __builtin_convertvector(sums.plain[column], Vec);
      weighted[column] = __builtin_convertvector(sums.weighted[column], Vec);
    }
    return;
  }
  sums = sums_of_rows<false>(rows, [&](Word x) __attribute__((always_inline)) {
    return smaller_halves(subtract_halves(x, black), most);
  });
  const Word one = both_halves(1, 1);
  const SegmentSums clipped = sums_of_rows<false>(rows, [&](Word x) __attribute__((always_inline)) {
    return smaller_halves(subtract_halves(subtract_halves(x, black), most), one);
  });
  for (int column = 0; column < 2; ++column) {
    const float excess = levels.excess[parity][column];
    plain[column] = __builtin_convertvector(sums.plain[column], Vec) +
                    excess * __builtin_convertvector(clipped.plain[column], Vec);
    weighted[column] = __builtin_convertvector(sums.weighted[column], Vec) +
                       excess * __builtin_convertvector(clipped.weighted[column], Vec);
  }
}

// ------------------------------------------------------------------------------------ of a whole row

// Rows of 2 * length floats, planes of even and odd columns. `rising`: what the segment before gave to
// the next triangle, of the even and the odd sensor rows. `above`, `centre`: what the corners above and
// at the centre of the output row say, in the order C1[0], C1[1], C2[0], C2[1].
struct SegmentState {
  int64_t length;
  float *rising, *above, *centre;
  uint16_t* patch;  // a block of columns that reaches beyond the sensor, its rows one after the other
};

template <Demosaic method>
constexpr int kCorrections = method == Demosaic::superpixel ? 0 : method == Demosaic::bilinear ? 2 : 4;

// The rows of a parity in a segment whose first row, at kLanes pairs, is x.
template <Demosaic method>
ISP_INLINE SegmentRows rows_of(const Segments& segments, int64_t i, int parity, const uint16_t* x,
                               int64_t step, int64_t ahead) {
  const int64_t first = segments.first[i], count = segments.first[i + 1] - first;
  // Of superpixels the rows are periods, each with one sensor row of either parity.
  if (method == Demosaic::superpixel) return {x + parity * step, 2 * step, count, ahead, 0, 1};
  const int skip = static_cast<int>((first ^ parity) & 1);
  return {x + skip * step, 2 * step, (count - skip + 1) / 2, ahead, skip, 2};
}

// What the corner above sensor row `first`, by `beyond`, has to say: second differences of a ramp, to 1
// and to 2 rows on either side, on the rows around it. store_end(sum, column, end), sum in the order of
// the state's.
template <Demosaic method, class StoreEnd>
ISP_INLINE void corner_ends(const Levels& levels, int64_t first, float beyond, const uint16_t* x,
                            int64_t step, StoreEnd store_end) {
  constexpr int corrections = kCorrections<method>;
  if constexpr (corrections > 0) {
    Vec near[4][2];  // of the rows first - 2 to first + 1
    for (int k = 0; k < 4; ++k) {
      if (corrections == 2 && (k == 0 || k == 3)) continue;
      const int site = 2 * static_cast<int>((first + k) & 1);
      const float *black = levels.black + site, *scale = levels.scale + site;
      load_pairs<Element::uint16>(x + (k - 2) * step, 0, &near[k][0], &near[k][1]);
      for (int column = 0; column < 2; ++column) {
        near[k][column] = clip((near[k][column] - black[column]) * scale[column]);
      }
    }
    // C1 of a parity is made of rows of the other, C2 of its own.
    const int parity = static_cast<int>(first & 1);
    for (int column = 0; column < 2; ++column) {
      store_end(parity, column, beyond * near[1][column]);
      store_end(1 - parity, column, (1 - beyond) * near[2][column]);
      if constexpr (corrections > 2) {
        const Vec own = beyond * near[0][column] + (2 - beyond) * near[2][column];
        store_end(2 + parity, column, own);
        const Vec other = (1 + beyond) * near[1][column] + (1 - beyond) * near[3][column];
        store_end(3 - parity, column, other);
      }
    }
  }
}

// Before output row i: the segment above its centre, and both of that segment's corners. x: kLanes pairs
// of the segment's first row; at: their place in an even plane.
template <Demosaic method>
ISP_INLINE void begin_segments(
    const Segments& segments, int64_t i, const Levels& levels, const WholeLevels& whole,
    const uint16_t* x, int64_t step, int64_t ahead, int64_t at, const SegmentState& state) {
  const int64_t count = segments.first[i] - segments.first[i - 1];
  for (int parity = 0; parity < 2; ++parity) {
    Vec plain[2], weighted[2];
    const SegmentRows rows = rows_of<method>(segments, i - 1, parity, x, step, ahead);
    segment_sums(rows, whole, parity, plain, weighted);
    for (int column = 0; column < 2; ++column) {
      store(state.rising + (2 * parity + column) * state.length + at,
            weighted[column] + segments.beyond[i - 1] * plain[column]);
    }
  }
  for (int end = 0; end < 2; ++end) {
    float* ends = end == 0 ? state.above : state.centre;
    corner_ends<method>(
        levels, segments.first[i - 1 + end], segments.beyond[i - 1 + end], x + end * count * step, step,
        [&](int sum, int column, Vec of_corner) __attribute__((always_inline)) {
          store(ends + (2 * sum + column) * state.length + at, of_corner);
        });
  }
}

// The sums of output row i, finished by the segment below its centre.
template <Demosaic method>
ISP_INLINE void finish_segments(
    const Segments& segments, int64_t i, const Levels& levels, const WholeLevels& whole,
    const uint16_t* x, int64_t step, int64_t ahead, int64_t at, const SegmentState& state, float* sums) {
  const int64_t count = segments.first[i + 1] - segments.first[i], length = state.length;
  const float weight = segments.weight[i], beyond = segments.beyond[i];
  Vec total[2][2];  // T0 of the even and the odd rows, in the even and the odd columns
  for (int parity = 0; parity < 2; ++parity) {
    Vec plain[2], weighted[2];
    const SegmentRows rows = rows_of<method>(segments, i, parity, x, step, ahead);
    segment_sums(rows, whole, parity, plain, weighted);
    for (int column = 0; column < 2; ++column) {
      const int64_t place = (2 * parity + column) * length + at;
      const Vec rising = weighted[column] + beyond * plain[column];
      const Vec falling = segments.length * plain[column] - rising;
      total[parity][column] =
          (weight * whole.scale[parity][column]) * (load(state.rising + place) + falling);
      store(state.rising + place, rising);
      store(sums + place, total[parity][column]);
    }
  }
  corner_ends<method>(
      levels, segments.first[i + 1], segments.beyond[i + 1], x + count * step, step,
      [&](int sum, int column, Vec end) __attribute__((always_inline)) {
        const int64_t place = (2 * sum + column) * length + at;
        const Vec kinks = load(state.above + place) - 2.0f * load(state.centre + place) + end;
        store(state.above + place, end);
        // T1[p] = 2 T0[1 - p] + C1[p], T2[p] = 2 T0[p] + C2[p].
        const Vec base = load(sums + (2 * (sum < 2 ? 1 - sum : sum - 2) + column) * length + at);
        store(sums + 4 * length + place, 2.0f * base + weight * kinks);
      });
}

// Runs use(x, step, ahead, at) for the blocks of columns from the pair in front of the piece to the one behind
// it, x being kLanes pairs of sensor row `row`, the first of `count`.
template <class Use>
ISP_INLINE void for_each_block(
    const Render& r, int64_t sample, int64_t row, int64_t count, const Span& span, uint16_t* patch,
    Use use) {
  const uint16_t* sensor =
      static_cast<const uint16_t*>(r.mosaic) + sample * r.mosaic_sample + row * r.mosaic_row;
  // As far as the next segment; the sensor may end before that one does.
  const int64_t ahead = at_most(count, at_least(r.height - row - count, 0)) * r.mosaic_row;
  for (int64_t i = -kLanes; i <= span.pairs; i += kLanes) {
    const int64_t column = 2 * (span.pair + i);
    if (column >= 0 && column + 2 * kLanes <= r.width) {
      use(sensor + column, r.mosaic_row, ahead, kPad + i);
      continue;
    }
    const int64_t begin = i < 0 ? 2 * kLanes - 2 : 0;
    const int64_t end = i < 0 ? 2 * kLanes : at_most(2 * kLanes, 2 * (span.pairs + 1 - i));
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t j = begin; j < end; ++j) {
        patch[k * 2 * kLanes + j] = sensor[k * r.mosaic_row + reflect(column + j, r.width)];
      }
    }
    use(patch, 2 * kLanes, 0, kPad + i);
  }
}

// Rows that a segment's patch may have, and floats that a piece of so many pairs needs.
ISP_INLINE int64_t patch_rows(const Segments& segments) {
  return 2 * (static_cast<int64_t>(segments.length) + 2) + 4;
}
ISP_INLINE int64_t segment_floats(const Segments& segments, int64_t pairs) {
  return (2 + 4 + 4) * 2 * plane_length(pairs) + patch_rows(segments) * kLanes;
}

static SegmentState make_segment_state(const Render& r, const Span& span, float* workspace) {
  const int64_t row = 2 * span.length;
  SegmentState state = {span.length, workspace, workspace + 2 * row, workspace + 6 * row,
                        reinterpret_cast<uint16_t*>(workspace + 10 * row)};
  memset(state.patch, 0, 4 * kLanes * patch_rows(r.segments));
  return state;
}

// The sums of output rows [begin, end), each handed to finish(i, sums) when it is complete.
template <Demosaic method, class Finish>
void run_segments(
    const Render& r, int64_t sample, int64_t begin, int64_t end, const Span& span,
    const Levels& levels, SegmentState state, float* sums, Finish finish) {
  const Segments& segments = r.segments;
  const WholeLevels whole = whole_levels(levels);
  constexpr int sensor_rows = method == Demosaic::superpixel ? 2 : 1;
  constexpr int reach = kCorrections<method> > 0 ? 2 : 0;  // rows above and below a corner
  const auto row = [&](int64_t i) { return sensor_rows * segments.first[i]; };
  for_each_block(
      r, sample, row(begin - 1) - reach, row(begin) - row(begin - 1) + 2 * reach, span, state.patch,
      [&](const uint16_t* x, int64_t step, int64_t ahead, int64_t at) __attribute__((always_inline)) {
        begin_segments<method>(segments, begin, levels, whole, x + reach * step, step, ahead, at, state);
      });
  for (int64_t i = begin; i < end; ++i) {
    for_each_block(
        r, sample, row(i), row(i + 1) - row(i) + reach, span, state.patch,
        [&](const uint16_t* x, int64_t step, int64_t ahead, int64_t at) __attribute__((always_inline)) {
          finish_segments<method>(segments, i, levels, whole, x, step, ahead, at, state, sums);
        });
    finish(i, sums);
    float* above = state.above;
    state.above = state.centre, state.centre = above;
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
