// Sensor rows to normalised float rows, the even and the odd columns apart.
//
// Kept apart, the sites of one colour are consecutive floats: a vector then holds one kind of site, and
// demosaicing needs no selection between kinds. Each of the two planes has one element more at either
// end, two sensor columns, which is as far as the demosaicing reaches; at the sensor's edges they are
// mirrored there, so that the filters have no edges.
#pragma once

#include "cpu/companding.h"
#include "cpu/mosaic.h"
#include "cpu/packing.h"
#include "cpu/render/call.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr int64_t kPad = 16;  // floats in front of a plane's first element; keeps planes aligned
constexpr int64_t kAhead = 4;  // rows from the one being read to the one being fetched

// The sensor columns that a piece reads, in pairs of an even and an odd one.
struct Span {
  int64_t pair;    // the first: columns 2 * pair and 2 * pair + 1
  int64_t pairs;
  int64_t skip;    // columns of the first pair that the picture does not use, 0 or 1
  int64_t length;  // floats of a plane of a normalised row, with what lies around it
};

ISP_INLINE int64_t plane_length(int64_t pairs) { return kPad + round_up(pairs + 1, kPad); }

// The pairs that serve `columns` source columns, at most.
ISP_INLINE int64_t most_pairs(const Render& r, int64_t columns) {
  return r.demosaic == Demosaic::superpixel ? columns : columns / 2 + 1;
}

ISP_INLINE Span span_of(const Render& r, const RenderPiece& piece) {
  const int64_t begin = r.columns.begin[piece.column_begin];
  const int64_t end = r.columns.end[piece.column_end - 1];
  Span span;
  if (r.demosaic == Demosaic::superpixel) {
    span.pair = r.left / 2 + begin;
    span.pairs = end - begin;
    span.skip = 0;
  } else {
    span.pair = (r.left + begin) / 2;
    span.skip = (r.left + begin) % 2;
    span.pairs = (r.left + end + 1) / 2 - span.pair;
  }
  span.length = plane_length(span.pairs);
  return span;
}

// What a row that is not read as it lies takes: [2 * pairs] floats, and behind them, where it is unpacked
// and then linearised, its codes.
ISP_INLINE int64_t widened_floats(const Render& r, int64_t pairs) {
  return round_up(2 * pairs, kPad) + (r.companding.tables ? round_up(pairs, kPad) + kPad : 0);
}

// An index beyond an edge, mirrored about the edge's own element.
ISP_INLINE int64_t reflect(int64_t index, int64_t size) {
  if (index >= 0 && index < size) return index;
  const int64_t period = 2 * (size - 1);
  index = (index % period + period) % period;
  return index < size ? index : period - index;
}

// The black levels and scales of one sample, in the order of the sites of a period.
struct Levels {
  float black[4], scale[4];
};

ISP_INLINE Levels levels_of(const Render& r, int64_t sample) {
  Levels levels;
  for (int site = 0; site < 4; ++site) {
    const int64_t at = 4 * sample + (site ^ (r.pattern[sample] & 3));
    levels.black[site] = r.black[at];
    levels.scale[site] = r.scale[at];
  }
  return levels;
}

// Clamps to [0, 1]; NaN stays NaN.
ISP_INLINE Vec clip(Vec x) { return min(broadcast(1.0f), max(Vec{}, x)); }

// A sensor row from the piece's first pair on, the two columns in front of it and behind it, and a row
// that is needed soon: a tile's rows are too short for the processor to foresee the next one.
template <class T>
struct SensorRow {
  const T *pairs, *ahead;
  T before[2], behind[2];
};

template <class T>
ISP_INLINE SensorRow<T> sensor_row(const Render& r, int64_t sample, int64_t row, const Span& span) {
  const T* start = static_cast<const T*>(r.mosaic) + sample * r.mosaic_sample + row * r.mosaic_row;
  const T* pairs = start + 2 * span.pair;
  const int64_t before = 2 * span.pair - 2, behind = 2 * (span.pair + span.pairs);
  return {pairs,
          pairs + at_most(kAhead, r.height - 1 - row) * r.mosaic_row,
          {start[reflect(before, r.width)], start[reflect(before + 1, r.width)]},
          {start[reflect(behind, r.width)], start[reflect(behind + 1, r.width)]}};
}

// The bytes of sensor row `row` of a packed mosaic.
ISP_INLINE PackedRow packed_row(const Render& r, int64_t sample, int64_t row) {
  return {static_cast<const uint8_t*>(r.mosaic) + sample * r.mosaic_sample + row * r.mosaic_row,
          r.width};
}

// The same of a packed mosaic; `codes` receives the pairs.
static SensorRow<uint16_t> unpacked_row(
    const Render& r, int64_t sample, int64_t row, const Span& span, uint16_t* codes) {
  const PackedRow packed = packed_row(r, sample, row);
  const int64_t before = 2 * span.pair - 2, behind = 2 * (span.pair + span.pairs);
  const uint16_t* pairs = unpack(r.packing, packed, 2 * span.pair, 2 * span.pairs, codes);
  SensorRow<uint16_t> sensor = {pairs, pairs, {}, {}};
  with_packing(r.packing, [&](auto tag) {
    for (int k = 0; k < 2; ++k) {
      sensor.before[k] = code_at<decltype(tag)::value>(packed.bytes, reflect(before + k, r.width));
      sensor.behind[k] = code_at<decltype(tag)::value>(packed.bytes, reflect(behind + k, r.width));
    }
  });
  return sensor;
}

// The same for the types without a path of their own; `widened` receives the pairs.
static SensorRow<float> widened_row(
    const Render& r, int64_t sample, int64_t row, const Span& span, float* widened) {
  const int64_t start = sample * r.mosaic_sample + row * r.mosaic_row;
  const int64_t before = 2 * span.pair - 2, behind = 2 * (span.pair + span.pairs);
  widen(r.mosaic, r.mosaic_type, start + 2 * span.pair, 2 * span.pairs, widened);
  SensorRow<float> sensor = {widened, widened, {}, {}};
  for (int k = 0; k < 2; ++k) {
    widen(r.mosaic, r.mosaic_type, start + reflect(before + k, r.width), 1, sensor.before + k);
    widen(r.mosaic, r.mosaic_type, start + reflect(behind + k, r.width), 1, sensor.behind + k);
  }
  return sensor;
}

// The same of a companding sensor: linear values.
static SensorRow<float> linear_row(
    const Render& r, int64_t sample, int64_t row, const Span& span, float* widened) {
  const float* table = r.companding.tables + sample * r.companding.step;
  const int64_t last = r.companding.last;
  SensorRow<float> sensor = {widened, widened, {}, {}};
  if (r.packing != Packing::none) {
    uint16_t* codes = reinterpret_cast<uint16_t*>(widened + round_up(2 * span.pairs, kPad));
    const SensorRow<uint16_t> coded = unpacked_row(r, sample, row, span, codes);
    linearise_codes(coded.pairs, 2 * span.pairs, table, last, widened);
    linearise_codes(coded.before, 2, table, last, sensor.before);
    linearise_codes(coded.behind, 2, table, last, sensor.behind);
    return sensor;
  }
  const int64_t start = sample * r.mosaic_sample + row * r.mosaic_row;
  const int64_t before = 2 * span.pair - 2, behind = 2 * (span.pair + span.pairs);
  const auto linearise = [&](int64_t column, int64_t count, float* out) {
    linearise_elements(r.mosaic, r.mosaic_type, start + column, count, table, last, out);
  };
  linearise(2 * span.pair, 2 * span.pairs, widened);
  for (int k = 0; k < 2; ++k) {
    linearise(reflect(before + k, r.width), 1, sensor.before + k);
    linearise(reflect(behind + k, r.width), 1, sensor.behind + k);
  }
  return sensor;
}

// Normalises a row and hands it on: use(i, even, odd) for kLanes pairs from pair i on, in ascending
// order, the last vector filled up beyond the one pair behind; first(even, odd) for the pair in front.
template <Element type, class T, class First, class Use>
ISP_INLINE void normalise_pairs(
    const SensorRow<T>& row, int64_t pairs, const float* black, const float* scale, First first,
    Use use) {
  const Vec black0 = broadcast(black[0]), black1 = broadcast(black[1]);
  const Vec scale0 = broadcast(scale[0]), scale1 = broadcast(scale[1]);
  Vec a, b;
  const auto normalised = [&](const T* p) __attribute__((always_inline)) {
    load_pairs<type>(p, 0, &a, &b);
    a = clip((a - black0) * scale0);
    b = clip((b - black1) * scale1);
  };
  T rest[2 * kLanes] = {row.before[0], row.before[1]};
  normalised(rest);
  first(a[0], b[0]);
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    __builtin_prefetch(row.ahead + 2 * i, 0, 2);
    normalised(row.pairs + 2 * i);
    use(i, a, b);
  }
  memcpy(rest, row.pairs + 2 * i, 2 * sizeof(T) * (pairs - i));
  memcpy(rest + 2 * (pairs - i), row.behind, 2 * sizeof(T));
  normalised(rest);
  use(i, a, b);
}

// Sensor row `row` of a sample, normalised, to first and use as above. `widened` holds
// widened_floats.
template <class First, class Use>
ISP_INLINE void for_each_pair(
    const Render& r, const Levels& levels, int64_t sample, int64_t row, const Span& span,
    float* widened, First first, Use use) {
  const int site = 2 * (int)(row & 1);
  const float *black = levels.black + site, *scale = levels.scale + site;
  if (r.companding.tables) {
    return normalise_pairs<Element::float32>(
        linear_row(r, sample, row, span, widened), span.pairs, black, scale, first, use);
  }
  switch (r.mosaic_type) {
    case Element::uint16:
      return normalise_pairs<Element::uint16>(
          r.packing == Packing::none
              ? sensor_row<uint16_t>(r, sample, row, span)
              : unpacked_row(r, sample, row, span, reinterpret_cast<uint16_t*>(widened)),
          span.pairs, black, scale, first, use);
    case Element::int16:
      return normalise_pairs<Element::int16>(
          sensor_row<int16_t>(r, sample, row, span), span.pairs, black, scale, first, use);
    case Element::float32:
      return normalise_pairs<Element::float32>(
          sensor_row<float>(r, sample, row, span), span.pairs, black, scale, first, use);
    default:
      return normalise_pairs<Element::float32>(
          widened_row(r, sample, row, span, widened), span.pairs, black, scale, first, use);
  }
}

// Sensor row `row` of a sample into the planes out and out + span.length.
static inline void normalise_row(
    const Render& r, const Levels& levels, int64_t sample, int64_t row, const Span& span,
    float* widened, float* out) {
  float *even_plane = out + kPad, *odd_plane = even_plane + span.length;
  for_each_pair(
      r, levels, sample, row, span, widened,
      [&](float a, float b) {
        even_plane[-1] = a;
        odd_plane[-1] = b;
      },
      [&](int64_t i, Vec a, Vec b) __attribute__((always_inline)) {
        store(even_plane + i, a);
        store(odd_plane + i, b);
      });
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
