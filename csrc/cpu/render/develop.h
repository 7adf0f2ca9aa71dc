// The first half of the kernels that develop sensor rows one by one: a ring of normalised rows, as many
// as a demosaicing filter reads.
#pragma once

#include "cpu/render/colour.h"
#include "cpu/render/demosaic.h"
#include "cpu/render/rows.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr int64_t kReach = 2;               // rows that a demosaicing filter reads on either side
// Source rows that are developed at a time where the picture is smaller (resized_kernel.cpp).
#if defined(__AVX512F__)
constexpr int64_t kRowGroup = 1;
#else
constexpr int64_t kRowGroup = 4;
#endif
constexpr int64_t kRing = 2 * kReach + kRowGroup;  // normalised rows
static_assert(kRing >= 2 * kRowGroup, "a group of superpixels has two rows each");

struct Developer {
  const Render* render;
  int64_t sample;
  Span span;
  Levels levels;
  // The colour matrix for rows with red and for rows with blue, its columns in the order of
  // demosaic_pairs: the row's own colour, green, the other.
  Colour colour[2];
  int64_t next;    // the first sensor row that is not normalised yet
  float* ring;     // [kRing][2][span.length]
  float* widened;  // see widened_floats
};

ISP_INLINE int64_t developer_floats(const Render& r, int64_t pairs) {
  return kRing * 2 * plane_length(pairs) + widened_floats(r, pairs);
}

static Developer make_developer(
    const Render& r, const RenderPiece& piece, const Span& span, float* workspace) {
  Developer d;
  d.render = &r;
  d.sample = piece.sample;
  d.span = span;
  d.levels = levels_of(r, piece.sample);
  const float* m = r.ccm + 9 * piece.sample;
  const float swapped[9] = {m[2], m[1], m[0], m[5], m[4], m[3], m[8], m[7], m[6]};
  d.colour[0] = colour_of(r, m);
  d.colour[1] = colour_of(r, swapped);
  d.next = at_least(r.top + r.rows.begin[piece.row_begin] - kReach, 0);
  d.ring = workspace;
  d.widened = workspace + kRing * 2 * span.length;
  return d;
}

ISP_INLINE float* ring_row(const Developer& d, int64_t row) {
  return d.ring + row % kRing * 2 * d.span.length;
}

// The rows that demosaicing a source row of a Bayer mosaic reads, and what stands where in it.
struct BayerRow {
  SensorRows rows;
  bool colour_even;  // the row's own colour stands in the even columns
  bool blue;         // it is blue
};

static BayerRow bayer_row(Developer& d, int64_t source_row) {
  const Render& r = *d.render;
  const int64_t row = r.top + source_row;
  const int64_t end = at_most(row + kReach + 1, r.height);
  for (; d.next < end; ++d.next) {
    normalise_row(r, d.levels, d.sample, d.next, d.span, d.widened, ring_row(d, d.next));
  }
  const float* of_row[2 * kReach + 1];
  for (int64_t k = 0; k <= 2 * kReach; ++k) of_row[k] = ring_row(d, reflect(row + k - kReach, r.height));
  // The plane (R, Gr, Gb, B) of the row's even column.
  const int64_t plane = (2 * (row & 1)) ^ (r.pattern[d.sample] & 3);
  const bool colour_even = plane == 0 || plane == 3, blue = plane >= 2;
  const int64_t x = kPad + (colour_even ? 0 : d.span.length);
  const int64_t y = kPad + (colour_even ? d.span.length : 0);
  return {{of_row[2] + x, of_row[2] + y, of_row[1] + x, of_row[3] + x,
                           of_row[1] + y, of_row[3] + y, of_row[0] + x, of_row[4] + x,
                           of_row[0] + y, of_row[4] + y},
          colour_even,
          blue};
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
