// One call of raw_conv as its CUDA kernels see it: pointers, strides and numbers, checked already.
#pragma once

#include <stdint.h>

namespace isp_distill::cuda {

enum class Sensor : int { uint8, uint16, int16, int32, float16, float32 };
enum class Curve : int { linear, sqrt, log, gamma };
enum class Activation : int { none, relu, relu6, silu, gelu };

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
// Output pixels of a tile. Each warp has one row of the tile in the forward pass.
inline constexpr int kTileRows = 8, kTileColumns = 32;
inline constexpr int kLargestKernel = 7;

// Sizes are on the packed grid (a step is a 2x2 period) unless said otherwise; strides in elements.
struct RawConvCall {
  const void* mosaic;  // [N, 2 height, 2 width], contiguous rows
  int64_t mosaic_sample, mosaic_row;
  const int64_t* pattern;        // [N]
  const float *black, *scale;    // [N, 4]: (x - black) * scale
  const float* mix;              // [N, 4, 4] or null
  const float* gamma;            // [] on the device, or null
  const float* padding_value;    // [4] or null
  const float* weight;           // [channels, 4, kernel, kernel]
  const float* bias;             // [channels] or null
  void* out;                     // [N, channels, out_height, out_width]: written, or read (relu)
  const void* grad;              // of the output, laid out as `out` is
  float *weight_sums, *bias_sums;  // [splits, channels, 4, kernel^2], [splits, channels]
  int64_t tiles;                 // of all samples
  int batch, height, width, channels, kernel, stride, left, top, out_height, out_width;
  int tile_columns, tiles_of_sample;
  int group;                     // channels of a block, a multiple of 32 (forward)
  Sensor sensor;
  Curve curve;
  Activation activation;
  bool clip, channels_last;
  bool aligned;                  // the mosaic can be read 16 bytes at a time
  bool out_aligned;              // and the output, or its gradient, written or read so
};

// Bytes of shared memory and where its parts begin. All parts begin at multiples of 16 bytes.
struct Layout {
  int rows, columns;     // of a tile's input, packed
  int pitch;             // packed columns from one row to the next
  int raw_pitch;         // bytes from one row of sensor values to the next
  int offsets, levels, weights, raw, packed, staging, total;
};

inline constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

inline int sensor_bytes(Sensor sensor) {
  return sensor == Sensor::uint8 ? 1 : sensor == Sensor::int32 || sensor == Sensor::float32 ? 4 : 2;
}

// Positions of the kernel, padded to what one step of a product takes.
inline int padded_positions(int kernel, int unit) { return round_up(kernel * kernel, unit); }

}  // namespace isp_distill::cuda
