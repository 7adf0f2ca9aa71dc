// The tables that the render operator makes for its kernels, in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/render/call.h"

namespace isp_distill {

// The parabolas of a tone curve, [3][kSegments]; zeros for those that need none.
std::vector<float> tone_table(Tone tone);

// The taps of one axis of the antialiased bilinear resize.
struct TapsTable {
  std::vector<int64_t> begin, end;
  std::vector<double> exact;
  std::vector<float> weight;  // exact, rounded
  int64_t source, target, stride;

  TapsTable(int64_t source, int64_t target);
  Taps view() const;
};

// Where the segments of the rows' taps begin and end, for whole sensor values. There are no whole
// triangles unless at least 4 rows make an output row, so that no two corners share one.
struct SegmentsTable {
  std::vector<int64_t> first;
  std::vector<float> beyond, weight;
  int64_t begin = 0, end = 0;
  float length;

  // `top` is the first sensor row of the crop.
  SegmentsTable(const TapsTable& rows, Demosaic demosaic, int64_t top, bool whole);
  Segments view() const;
};

// The taps of the rows with the vertical part of the demosaicing folded in (what the terms are:
// folded_kernel.cpp), but for the output rows that are made of segments.
struct FoldedTable {
  std::vector<int64_t> first, last, begin;
  std::vector<FoldedTerm> terms;
  int64_t active = 0;

  // `height` is the sensor's.
  FoldedTable(const TapsTable& rows, Demosaic demosaic, int64_t top, int64_t height,
              const Segments& others);
  FoldedRows view() const;
};

}  // namespace isp_distill
