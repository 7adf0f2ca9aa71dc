// Sensor rows to normalised float rows, the even and the odd columns apart.
//
// Kept apart, the sites of one colour are consecutive floats: a vector then holds one kind of site, and
// demosaicing needs no selection between kinds. Each of the two planes has one element more at either
// end, two sensor columns, which is as far as the demosaicing reaches; at the sensor's edges they are
// mirrored there, so that the filters have no edges.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/render.h"
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

// An index beyond an edge, mirrored about the edge's own element.
ISP_INLINE int64_t reflect(int64_t index, int64_t size) {
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

ISP_INLINE float normalise_one(const Render& r, const Levels& levels, int64_t at, int site) {
  Vec x = {};
  switch (r.mosaic_type) {
    case Element::uint8:
      x[0] = static_cast<const uint8_t*>(r.mosaic)[at];
      break;
    case Element::uint16:
      x[0] = static_cast<const uint16_t*>(r.mosaic)[at];
      break;
    case Element::int16:
      x[0] = static_cast<const int16_t*>(r.mosaic)[at];
      break;
    case Element::int32:
      x[0] = (float)static_cast<const int32_t*>(r.mosaic)[at];
      break;
    case Element::float32:
      x[0] = static_cast<const float*>(r.mosaic)[at];
      break;
    default: {
      HalfWord half = {};
      half[0] = static_cast<const uint16_t*>(r.mosaic)[at];
      x = from_float16(half);
    }
  }
  return clip((x - levels.black[site]) * levels.scale[site])[0];
}

// Writes whole vectors: up to kLanes - 1 floats beyond the last pair. `ahead` is a row that is needed
// soon: a tile's rows are too short for the processor to foresee the next one.
template <Element type>
static void normalise_pairs(
    const void* row, const void* ahead, int64_t pairs, const float* black, const float* scale,
    float* even_plane, float* odd_plane) {
  constexpr int kBytes = type == Element::float32 ? 8 : 4;  // of a pair
  const Vec black0 = broadcast(black[0]), black1 = broadcast(black[1]);
  const Vec scale0 = broadcast(scale[0]), scale1 = broadcast(scale[1]);
  Vec a, b;
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    __builtin_prefetch(static_cast<const char*>(ahead) + kBytes * i, 0, 2);
    load_pairs<type>(row, i, &a, &b);
    store(even_plane + i, clip((a - black0) * scale0));
    store(odd_plane + i, clip((b - black1) * scale1));
  }
  if (i == pairs) return;
  alignas(64) char rest[kBytes * kLanes] = {};
  memcpy(rest, static_cast<const char*>(row) + kBytes * i, kBytes * (pairs - i));
  load_pairs<type>(rest, 0, &a, &b);
  store(even_plane + i, clip((a - black0) * scale0));
  store(odd_plane + i, clip((b - black1) * scale1));
}

// Sensor row `row` of a sample into the planes out and out + span.length. `widened` holds the row as
// floats where its type has no path of its own.
static void normalise_row(
    const Render& r, const Levels& levels, int64_t sample, int64_t row, const Span& span,
    float* widened, float* out) {
  const int site = 2 * (int)(row & 1);
  const float *black = levels.black + site, *scale = levels.scale + site;
  const int64_t start = sample * r.mosaic_sample + row * r.mosaic_row, at = start + 2 * span.pair;
  float *even_plane = out + kPad, *odd_plane = even_plane + span.length;
  const int64_t ahead = at + at_most(kAhead, r.height - 1 - row) * r.mosaic_row;
  if (r.mosaic_type == Element::uint16) {
    const uint16_t* words = static_cast<const uint16_t*>(r.mosaic);
    normalise_pairs<Element::uint16>(words + at, words + ahead, span.pairs, black, scale, even_plane,
                                     odd_plane);
  } else if (r.mosaic_type == Element::int16) {
    const int16_t* words = static_cast<const int16_t*>(r.mosaic);
    normalise_pairs<Element::int16>(words + at, words + ahead, span.pairs, black, scale, even_plane,
                                    odd_plane);
  } else {
    const float* floats = static_cast<const float*>(r.mosaic) + at;
    const float* next = static_cast<const float*>(r.mosaic) + ahead;
    if (r.mosaic_type != Element::float32) {
      widen(r.mosaic, r.mosaic_type, at, 2 * span.pairs, widened);
      floats = next = widened;
    }
    normalise_pairs<Element::float32>(floats, next, span.pairs, black, scale, even_plane, odd_plane);
  }
  const int64_t before = 2 * span.pair - 2, behind = 2 * (span.pair + span.pairs);
  for (int odd_column = 0; odd_column < 2; ++odd_column) {
    float* plane = odd_column ? odd_plane : even_plane;
    const int of = site + odd_column;
    plane[-1] = normalise_one(r, levels, start + reflect(before + odd_column, r.width), of);
    plane[span.pairs] = normalise_one(r, levels, start + reflect(behind + odd_column, r.width), of);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
