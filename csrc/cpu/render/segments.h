// The six vertical sums of folded_kernel.cpp, from whole sensor values.
//
// The triangles v of neighbouring output rows have their corners at the same heights: at the centres of
// the output rows. From one centre to the next lies a segment of sensor rows, and in it every v is linear
// in the row. So two integer sums of a segment, for its even and its odd sensor rows apart,
//
//   S = sum of y[r],  M = sum of (r - first) y[r],  y = value above black,
//
// are all that its rows contribute to any T0, and they stay in registers while the segment is read
// (segment_sums.h): a triangle rises by M and falls by S and M. C1 and C2 are 1,
// -2 and 1 times what the four sensor rows around each of the three corners say. All of it is combined
// in registers and stored once for each row of the picture, and the rows of the next segment are fetched
// meanwhile, since no processor follows so many streams by itself.
#pragma once

#include "cpu/render/demosaic.h"
#include "cpu/render/rows.h"
#include "cpu/render/segment_sums.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// ---------------------------------------------------------------------------- of one block of columns

// A block of a row: in memory `x`, `step` elements from row to row, `ahead` to the next segment.
struct Block {
  const uint16_t* x;
  int64_t step, ahead;
};

// The numbers of a segment, the same for all blocks.
template <Demosaic method>
struct Segment {
  static constexpr bool kPeriods = method == Demosaic::superpixel;
  static constexpr int kSensorRows = kPeriods ? 2 : 1;  // of a row that is counted here

  int64_t count;
  int parity;  // of the first row
  float length, beyond, weight, scale[2][2];

  Segment(const Segments& segments, int64_t i, const WholeLevels& levels)
      : count(segments.first[i + 1] - segments.first[i]), parity(segments.first[i] & 1),
        length(segments.length), beyond(segments.beyond[i]), weight(segments.weight[i]) {
    for (int row = 0; row < 2; ++row) {
      for (int column = 0; column < 2; ++column) {
        scale[row][column] = weight * levels.scale[row][column];
      }
    }
  }

  // The rows of a parity. Of superpixels the rows are periods, each with one sensor row of either.
  ISP_MEMBER SegmentRows rows(const Block& block, int of) const {
    if (kPeriods) return {block.x + of * block.step, 2 * block.step, count, block.ahead, 0, 1};
    const int skip = parity ^ of;
    return {block.x + skip * block.step, 2 * block.step, (count - skip + 1) / 2, block.ahead, skip, 2};
  }
};

// The numbers of the corner above a segment, the same for all blocks.
template <Demosaic method>
struct Corner {
  static constexpr int kCorrections =
      method == Demosaic::bilinear ? 2 : method == Demosaic::malvar ? 4 : 0;
  static constexpr int kReach = kCorrections > 0 ? 2 : 0;  // sensor rows to either side
  static constexpr int kPlanes = 2 * (2 + kCorrections);   // of T0 and what is corrected

  int parity;  // of the row below
  // Second differences of a ramp that begins at the corner, 1 row to either side (of the rows above and
  // below it) and 2 rows (of two rows above and two below), times the scale. By column.
  float near[2][2], far[4][2];

  Corner(const Segments& segments, int64_t i, const WholeLevels& levels)
      : parity(segments.first[i] & 1) {
    const float beyond = segments.beyond[i];
    for (int column = 0; column < 2; ++column) {
      const float below = levels.scale[parity][column], above = levels.scale[1 - parity][column];
      near[0][column] = beyond * above, near[1][column] = (1 - beyond) * below;
      far[0][column] = beyond * below, far[1][column] = (1 + beyond) * above;
      far[2][column] = (2 - beyond) * below, far[3][column] = (1 - beyond) * above;
    }
  }
};

// What a block of columns keeps from segment to segment.
struct alignas(64) BlockState {
  // What the segment above gave to the next triangle: of even and odd sensor rows in even and odd columns.
  Vec rising[2][2];
  // What the last two corners said, C1[0], C1[1], C2[0], C2[1], each in even and odd columns.
  Vec ends[2][4][2];
  bool clips[2];  // whether even and odd sensor rows were clipped
};

constexpr int kMostPlanes = 12;
// Sums exist for so many blocks of a row at a time, which keeps them in the first-level cache.
constexpr int64_t kSlots = 18;
constexpr int64_t kPlane = kSlots * kLanes + kPad;

// What a corner says, the row below which is x: store_end(k, column, value).
template <int parity, Demosaic method, class StoreEnd>
ISP_INLINE void corner_ends(const Corner<method>& corner, const WholeLevels& levels,
                            const uint16_t* x, int64_t step, StoreEnd store_end) {
  constexpr int corrections = Corner<method>::kCorrections;
  if constexpr (corrections > 0) {
    constexpr int from = corrections == 2 ? 1 : 0, to = 4 - from;
    Vec y[4][2];  // two rows above, two below
    for (int k = from; k < to; ++k) {
      const int row = (parity + k) & 1;
      const Word both = subtract_halves(load_words(x + (k - 2) * step), levels.black[row]);
      split_pair<Element::uint16>(both, &y[k][0], &y[k][1]);
      for (int column = 0; column < 2; ++column) {
        y[k][column] = min(y[k][column], broadcast(levels.steps[row][column]));
      }
    }
    for (int column = 0; column < 2; ++column) {
      // C1 of a parity is made of rows of the other, C2 of its own.
      store_end(parity, column, corner.near[0][column] * y[1][column]);
      store_end(1 - parity, column, corner.near[1][column] * y[2][column]);
      if constexpr (corrections > 2) {
        const float(&far)[4][2] = corner.far;
        store_end(2 + parity, column, far[0][column] * y[0][column] + far[2][column] * y[2][column]);
        store_end(3 - parity, column, far[1][column] * y[1][column] + far[3][column] * y[3][column]);
      }
    }
  }
}

// One block of a segment: completes the sums of the output row at whose centre it begins, in planes
// kPlane apart, in the order T0[0], T0[1], T1[0], T1[1], T2[0], T2[1], each in even and odd columns.
// `turn`: where the state has what that row's first corner said; what the third one says, at the
// segment's end, takes its place.
template <int parity, Demosaic method>
ISP_INLINE void complete_block(
    const Segment<method>& segment, const Corner<method>& end, const WholeLevels& levels,
    const Block& block, int turn, BlockState& state, float* sums) {
  Vec total[2][2];
#pragma GCC unroll 2
  for (int row = 0; row < 2; ++row) {
    Vec plain[2], weighted[2];
    segment_sums(segment.rows(block, row), levels, row, state.clips[row], plain, weighted);
    for (int column = 0; column < 2; ++column) {
      const Vec rising = weighted[column] + segment.beyond * plain[column];
      const Vec falling = segment.length * plain[column] - rising;
      total[row][column] = segment.scale[row][column] * (state.rising[row][column] + falling);
      store(sums + (2 * row + column) * kPlane, total[row][column]);
      state.rising[row][column] = rising;
    }
  }
  corner_ends<parity>(
      end, levels, block.x + segment.count * block.step, block.step,
      [&](int k, int column, Vec of_corner) __attribute__((always_inline)) {
        Vec& above = state.ends[turn][k][column];
        const Vec kinks = above - 2.0f * state.ends[1 - turn][k][column] + of_corner;
        // T1[p] = 2 T0[1 - p] + C1[p], T2[p] = 2 T0[p] + C2[p].
        const Vec base = total[k < 2 ? 1 - k : k - 2][column];
        store(sums + (4 + 2 * k + column) * kPlane, 2.0f * base + segment.weight * kinks);
        above = of_corner;
      });
}

// The state before the first output row that the segment is part of, from it and from both its corners.
template <Demosaic method>
ISP_INLINE void begin_block(
    const Segment<method>& segment, const Corner<method>& start, const Corner<method>& end,
    const WholeLevels& levels, const Block& block, int turn, BlockState& state) {
  state.clips[0] = state.clips[1] = false;
  for (int row = 0; row < 2; ++row) {
    Vec plain[2], weighted[2];
    segment_sums(segment.rows(block, row), levels, row, state.clips[row], plain, weighted);
    for (int column = 0; column < 2; ++column) {
      state.rising[row][column] = weighted[column] + segment.beyond * plain[column];
    }
  }
  const auto keep = [&](const Corner<method>& corner, const uint16_t* x, Vec (&ends)[4][2]) {
    const auto store_end = [&](int k, int column, Vec of_corner) { ends[k][column] = of_corner; };
    if (corner.parity == 0) {
      corner_ends<0>(corner, levels, x, block.step, store_end);
    } else {
      corner_ends<1>(corner, levels, x, block.step, store_end);
    }
  };
  keep(start, block.x, state.ends[turn]);
  keep(end, block.x + segment.count * block.step, state.ends[1 - turn]);
}

// ---------------------------------------------------------------------------------- of a whole row

// A patch of a packed mosaic is so many blocks wide, which lets the memory read longer runs of a row.
constexpr int64_t kPatchColumns = 4 * 2 * kLanes;
constexpr int64_t kPatchStep = kPatchColumns + 16;  // from row to row, with room for the last vector

// Of `count` rows from `sensor` on, the columns from `column` on that lie in [begin, end) of a block,
// those beyond the sensor mirrored.
__attribute__((noinline)) static void fill_patch(
    const Render& r, const uint16_t* sensor, int64_t count, int64_t column, int64_t begin, int64_t end,
    uint16_t* patch) {
  for (int64_t j = begin; j < end; ++j) {
    const uint16_t* from = sensor + reflect(column + j, r.width);
    for (int64_t k = 0; k < count; ++k) patch[k * kPatchStep + j] = from[k * r.mosaic_row];
  }
}

// The same of a packed mosaic whose first row is `row`.
template <Packing packing>
__attribute__((noinline)) static void fill_packed_patch(
    const Render& r, const PackedRow& row, int64_t count, int64_t column, int64_t begin, int64_t end,
    uint16_t* patch) {
  for (int64_t j = begin; j < end; ++j) {
    const int64_t from = reflect(column + j, r.width);
    for (int64_t k = 0; k < count; ++k) {
      patch[k * kPatchStep + j] = code_at<packing>(row.bytes + k * r.mosaic_row, from);
    }
  }
}

// Of `count` rows from `row` on, `columns` columns within the sensor from `first` on, a multiple of kGroup.
// The same bytes `ahead` of them are fetched.
template <Packing packing>
__attribute__((noinline)) static void unpack_patch(
    const Render& r, PackedRow row, int64_t count, int64_t first, int64_t columns, int64_t ahead,
    uint16_t* patch) {
  const int64_t begin = packed_bytes<packing>(first), end = packed_bytes<packing>(first + columns);
  // Where whole vectors can be read, their number is known to the compiler.
  constexpr int64_t step = kUnpacked * bits_of(packing) / 8;
  constexpr int64_t read = (kPatchColumns / kUnpacked - 1) * step + kPackedRead<packing>;
  const bool unrolled =
      columns == kPatchColumns && begin + read <= packed_bytes<packing>(row.width);
  const Unpacking<packing> with;
  for (int64_t k = 0; k < count; ++k, row.bytes += r.mosaic_row, patch += kPatchStep) {
    for (int64_t b = begin; b < end; b += 64) __builtin_prefetch(row.bytes + ahead + b, 0, 2);
    if (unrolled) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kPatchColumns / kUnpacked; ++i) {
        unpack_block(with, row.bytes + begin + i * step, patch + i * kUnpacked);
      }
    } else {
      unpack_pixels<packing>(row, first, columns, patch);
    }
  }
}

// Which columns a patch of a packed mosaic holds, from `first` on.
struct PatchColumns {
  int64_t first, end;
};

// Has a patch hold the block from `column` on, and those behind it that lie within the sensor. Of the
// block itself [begin, end) is needed.
static PatchColumns patch_packed(
    const Render& r, const PackedRow& row, int64_t count, int64_t column, int64_t begin, int64_t end,
    int64_t ahead, uint16_t* patch) {
  const int64_t whole = at_most(r.width - column, kPatchColumns) / (2 * kLanes) * (2 * kLanes);
  const bool inside = column >= 0 && whole > 0;
  const int64_t first = inside ? column / kGroup * kGroup : column;
  with_packing(r.packing, [&](auto tag) {
    if (inside) {
      unpack_patch<decltype(tag)::value>(r, row, count, first, column - first + whole, ahead, patch);
    } else {
      fill_packed_patch<decltype(tag)::value>(r, row, count, column, begin, end, patch);
    }
  });
  return {first, inside ? column + whole : column + 2 * kLanes};
}

// Runs use(block, i) for kLanes pairs from pair i on, from the one in front of the piece to the one
// behind it; `row` is the first of `count` sensor rows. `patch` stands in for what is beyond the sensor, and
// for the rows of a packed mosaic, a few blocks of which then lie in the first-level cache.
template <class Use>
ISP_INLINE void for_each_block(
    const Render& r, int64_t sample, int64_t row, int64_t count, const Span& span, uint16_t* patch,
    Use use) {
  const bool packed = r.packing != Packing::none;
  const uint16_t* sensor =
      packed ? nullptr
             : static_cast<const uint16_t*>(r.mosaic) + sample * r.mosaic_sample + row * r.mosaic_row;
  // As far as the next segment; the sensor may end before that one does.
  const int64_t ahead = at_most(count, at_least(r.height - row - count, 0)) * r.mosaic_row;
  PatchColumns held = {0, INT64_MIN};
  for (int64_t i = -kLanes; i <= span.pairs; i += kLanes) {
    const int64_t column = 2 * (span.pair + i);
    Block block = {packed ? nullptr : sensor + column, r.mosaic_row, ahead};
    if (__builtin_expect(packed || column < 0 || column + 2 * kLanes > r.width, 0)) {
      const int64_t begin = i < 0 ? 2 * kLanes - 2 : 0;
      const int64_t end = i < 0 ? 2 * kLanes : at_most(2 * kLanes, 2 * (span.pairs + 1 - i));
      if (!packed) {
        fill_patch(r, sensor, count, column, begin, end, patch);
        held.first = column;
      } else if (column >= held.end) {
        held = patch_packed(
            r, packed_row(r, sample, row), count, column, begin, end, ahead, patch);
      }
      block = {patch + (column - held.first), kPatchStep, 0};
    }
    use(block, i);  // in one place: it is long, and inlined
  }
}

// What a piece works with: the states of its blocks, sums of some blocks, and a patch.
struct SegmentMemory {
  BlockState* states;  // from the block in front of the piece on
  float* sums;
  uint16_t* patch;
};

ISP_INLINE int64_t patch_rows(const Segments& segments) {
  return 2 * (static_cast<int64_t>(segments.length) + 2) + 4;
}
ISP_INLINE int64_t segment_floats(const Segments& segments, int64_t pairs) {
  return (pairs / kLanes + 2) * static_cast<int64_t>(sizeof(BlockState) / sizeof(float)) + kPad +
         kMostPlanes * kPlane + patch_rows(segments) * kPatchStep / 2;
}

// Completes output row i, and hands develop(sums, origin, begin, end) the sums of pairs [begin, end):
// those of pair p are at sums[p - origin], in planes kPlane apart.
template <int parity, Demosaic method, class Develop>
void complete_row(
    const Render& r, int64_t sample, int64_t i, const Span& span, const WholeLevels& levels,
    const SegmentMemory& memory, Develop develop) {
  const Segment<method> segment(r.segments, i, levels);
  const Corner<method> end(r.segments, i + 1, levels);
  const int turn = static_cast<int>(i % 2);
  // A pixel needs the pairs beside it: a slot is developed when the next one is filled.
  int64_t slot = 1, ready = 2, origin = -2 * kLanes;
  for_each_block(
      r, sample, segment.kSensorRows * r.segments.first[i],
      segment.kSensorRows * segment.count + end.kReach, span, memory.patch,
      [&](const Block& block, int64_t pair) __attribute__((always_inline)) {
        BlockState& state = memory.states[pair / kLanes + 1];
        complete_block<parity>(segment, end, levels, block, turn, state, memory.sums + slot * kLanes);
        if (++slot < kSlots) return;
        const int64_t filled = at_most(origin + (kSlots - 1) * kLanes, span.pairs);
        develop(memory.sums, origin, origin + ready * kLanes, filled);
        for (int k = 0; k < end.kPlanes; ++k) {
          float* plane = memory.sums + k * kPlane;
          memcpy(plane, plane + (kSlots - 2) * kLanes, 2 * kLanes * sizeof(float));
        }
        origin += (kSlots - 2) * kLanes;
        slot = 2, ready = 1;
      });
  develop(memory.sums, origin, origin + ready * kLanes, span.pairs);
}

// Output rows [begin, end): develop as above, then finish(i).
template <Demosaic method, class Develop, class Finish>
void run_segments(
    const Render& r, int64_t sample, int64_t begin, int64_t end, const Span& span,
    const Levels& of_sample, float* workspace, Develop develop, Finish finish) {
  const WholeLevels levels = whole_levels(of_sample);
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64;
  SegmentMemory memory = {reinterpret_cast<BlockState*>(aligned), nullptr, nullptr};
  memory.sums = reinterpret_cast<float*>(memory.states + span.pairs / kLanes + 2);
  memory.patch = reinterpret_cast<uint16_t*>(memory.sums + kMostPlanes * kPlane);
  // Lanes that no pixel needs are never filled.
  memset(memory.sums, 0,
         sizeof(float) * (kMostPlanes * kPlane + patch_rows(r.segments) * kPatchStep / 2));

  const Segment<method> before(r.segments, begin - 1, levels);
  const Corner<method> top(r.segments, begin - 1, levels), bottom(r.segments, begin, levels);
  for_each_block(
      r, sample, before.kSensorRows * r.segments.first[begin - 1] - top.kReach,
      before.kSensorRows * before.count + 2 * top.kReach, span, memory.patch,
      [&](const Block& block, int64_t pair) {
        const Block inside = {block.x + top.kReach * block.step, block.step, block.ahead};
        begin_block(before, top, bottom, levels, inside, static_cast<int>(begin % 2),
                    memory.states[pair / kLanes + 1]);
      });
  for (int64_t i = begin; i < end; ++i) {
    const bool odd = r.segments.first[i + 1] & 1;
    (odd ? complete_row<1, method, Develop> : complete_row<0, method, Develop>)(
        r, sample, i, span, levels, memory, develop);
    finish(i);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
