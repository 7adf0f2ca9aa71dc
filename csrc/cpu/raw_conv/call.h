// What the raw_conv operators (call.cpp) hand to their kernels: plain data, checked already.
#pragma once

#include <stdint.h>

#include "cpu/element.h"

namespace isp_distill {

enum class Curve { linear, sqrt, log, gamma };
enum class Activation { none, relu, relu6, silu, gelu };

// A [N, C, H, W] tensor of floating-point numbers; strides in elements.
struct Image {
  void* data;
  Element type;
  int64_t sample, channel, row, column;
};

// Sizes on the packed grid (one step is one 2x2 period) unless said otherwise.
struct RawConv {
  const void* mosaic;  // [N, 2 height, 2 width], contiguous rows; where packed, [N, 2 height, bytes]
  Element mosaic_type;  // of the codes
  Packing packing;
  Companding companding;
  int64_t mosaic_sample, mosaic_row;  // strides in elements
  int64_t height, width;
  const int64_t* pattern;        // [N]
  const float *black, *scale;    // [N, 4]: (x - black) * scale, scale = gain / (white - black)
  const float* unit;             // [N, 4]: 1 / (white - black)
  const float* mix;              // [N, 4, 4] or null
  Curve curve;
  float gamma;
  bool clip;
  float padding_value[4];
  int64_t channels, kernel, stride, left, top, out_height, out_width;
  const float* weight;  // [channels, 4, kernel, kernel]
  const float* bias;    // [channels] or null
  Activation activation;
  // Written by the forward pass. The backward pass reads it where it tells the activation's derivative
  // (relu, relu6); without it (null data) that pass computes the convolution again.
  Image out;
};

// One piece of the output: rows and columns of one sample. Pieces depend on the shapes alone, never on
// the number of threads, so that sums over them are the same every time.
struct Piece {
  int64_t sample, row_begin, row_end, column_begin, column_end;
};

// What the backward pass of one piece reads and adds up; null where it is not asked for.
struct RawConvGradients {
  Image grad_out;
  float* weight;  // [channels, 4, kernel, kernel]
  float* bias;    // [channels]
  float* colour;  // gain [4], mix [4, 4], gamma [1], one after the other
};

}  // namespace isp_distill
