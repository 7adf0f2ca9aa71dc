// What the render operator (call.cpp) hands to its kernels: plain data, checked already.
//
// Everything works in the sensor's own orientation. The picture is turned upright only where it is
// written: `out` with its three steps, which may be negative or exchanged.
#pragma once

#include <stdint.h>

#include "cpu/element.h"

namespace isp_distill {

// `none`: of mono, where every site has all that there is.
enum class Demosaic { superpixel, bilinear, malvar, none };
enum class Tone { linear, srgb, gamma, smoothstep, log };

// The log tone is log2(1 + kToneMu x) * kTonePerOctave, see isp_distill/ops/reference.py.
constexpr float kToneMu = 5000.0f;
constexpr float kTonePerOctave = 0.0813802024f;  // 1 / log2(1 + kToneMu)

// Any other tone curve, with AVX-512 (for the others see power.h): parabola s is
// curve[s] + x * (curve[kSegments + s] + x * curve[2 * kSegments + s]), where s is bits kSegmentShift and
// up of the float x * kSegmentScale + kSegmentOffset, modulo kSegments.
constexpr int kSegments = 32;
constexpr int kSegmentShift = 21;
constexpr float kSegmentOffset = 0x1p-8f;
constexpr float kSegmentScale = 1.0f - 0x1p-8f - 0x1p-16f;
constexpr float kDarkestTone = 1e-8f;  // below it gamma and smoothstep are flat

// One axis of the resize: target element i is the sum of weight[i * stride + k] times source element
// begin[i] + k over k < end[i] - begin[i]. Weights from there to `stride` are zero.
struct Taps {
  int64_t source, target, stride;
  const int64_t *begin, *end;
  const float* weight;
  bool identity;  // source == target: nothing to do
};

// A sensor row's part in one of the sums that an output row is made of (see folded_kernel.cpp).
struct FoldedTerm {
  int64_t out_row;
  int32_t sum;
  float weight;
};

// The vertical resize with the vertical part of the demosaicing folded into it.
struct FoldedRows {
  const int64_t *first, *last;  // of each output row: the sensor rows that it reads, inclusive
  const int64_t* begin;         // [height + 1]: the terms of each sensor row
  const FoldedTerm* terms;
  int64_t active;               // output rows that are unfinished at the same time, at most
};

// Where the sensor's rows are cut at the centres of the output rows (see segments.h). Segment i
// begins at the centre of output row i.
struct Segments {
  int64_t begin, end;     // the output rows whose triangles are whole; none without an advantage
  const int64_t* first;   // the first row of each segment, a sensor row or (superpixel) a period
  const float* beyond;    // how far below the segment's beginning the middle of that row is, [0, 1)
  const float* weight;    // of each output row: what its triangle falls by from row to row
  float length;           // rows of a segment, on average
};

struct Render {
  const void* mosaic;  // [N, height, width], contiguous rows; where packed, [N, height, bytes]
  Element mosaic_type;  // of the codes
  Packing packing;
  Companding companding;
  int64_t mosaic_sample, mosaic_row;  // strides in elements
  int64_t height, width;
  const int64_t* pattern;      // [N]
  const float *black, *scale;  // [N, 4]: (x - black) * scale, scale = gain / (white - black)
  const float* ccm;            // [N, 3, 3]
  const float* planes;         // [N, 3, 4], of superpixels' four planes, where the filter has four
                               // colours; `ccm` is then the identity
  Demosaic demosaic;
  Tone tone;
  const float* curve;    // the tone's table, for AVX-512 (see colour.h)
  bool resize_linear;    // resize before matrix, clip and tone rather than after
  int64_t top, left;     // of the crop, sensor pixels
  Taps rows, columns;    // from the demosaiced crop to the picture
  FoldedRows folded;     // for render_folded only
  Segments segments;     // likewise
  float slope[3], offset[3];  // the teacher's normalisation, x * slope + offset
  // Element (row i, column j, channel c) of sample n, as the sensor sees it, is at
  // n * out_sample + i * out_row + j * out_column + c * out_channel.
  void* out;
  Element out_type;
  int64_t out_sample, out_row, out_column, out_channel;
  bool streaming;  // the picture is far larger than the caches: write around them
};

// One piece of the picture, rows and columns as the sensor sees it.
struct RenderPiece {
  int64_t sample, row_begin, row_end, column_begin, column_end;
};

}  // namespace isp_distill
