// One call of raw_conv as its CUDA kernels see it: pointers, strides and numbers, checked already.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define ISP_BOTH __host__ __device__
#else
#define ISP_BOTH
#endif

namespace isp_distill::cuda {

enum class Sensor : int { uint8, uint16, int16, int32, float16, float32 };
// How codes share bytes, in the order of isp_distill/raw/packings.py; the sensor is then uint8.
enum class Packing : int { none, mipi10, mipi12, mipi14, pfnc10p, pfnc12p, gige12packed };
enum class Curve : int { linear, sqrt, log, gamma };
enum class Activation : int { none, relu, relu6, silu, gelu };

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
// Output pixels of a tile. Each warp has one row of the tile in the forward pass.
inline constexpr int kTileRows = 8, kTileColumns = 32;
inline constexpr int kLargestKernel = 7;

// Sizes are on the packed grid (a step is a 2x2 period) unless said otherwise; strides in elements.
struct RawConvCall {
  const void* mosaic;  // [N, 2 height, 2 width], contiguous rows; where packed, of bytes
  int64_t mosaic_sample, mosaic_row;
  const int64_t* pattern;        // [N]
  const float *black, *scale;    // [N, 4]: (x - black) * scale
  const float* linearise;        // a table of each sample, or of all; null where codes are linear
  int64_t table_step;            // from one sample's table to the next, or 0
  int last_code;                 // of a table
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
  Packing packing;
  Curve curve;
  Activation activation;
  bool clip, channels_last;
  bool aligned;                  // the mosaic can be read 16 bytes at a time
  bool out_aligned;              // and the output, or its gradient, written or read so
};

// Bytes of a block's shared memory and where its parts begin, at multiples of 16 bytes.
struct Layout {
  int rows, columns;  // of a tile's input, packed
  int pitch;          // packed periods from one row to the next
  int raw_pitch;      // bytes from one row of sensor values to the next
  int offsets;        // of the kernel's positions from a pixel's first period, in words
  int weights, staging;  // forward: the operand's weights, and an output tile for each warp
  int gradient;          // backward: the output's gradient
  int word_rows;         // of the packed tile; in the backward pass a word may hold two rows
  int raw, packed, total;
};

ISP_BOTH inline constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

ISP_BOTH inline int sensor_bytes(Sensor sensor) {
  return sensor == Sensor::uint8 ? 1 : sensor == Sensor::int32 || sensor == Sensor::float32 ? 4 : 2;
}

// Bytes of four pixels, where packed: half as many as a code has bits. Two of 12 bits take half of them.
ISP_BOTH inline int bytes_of_four(Packing packing) {
  return packing == Packing::mipi14 ? 7 : packing == Packing::mipi10 || packing == Packing::pfnc10p ? 5 : 6;
}

// Bytes of the first `pixels` pixels of a row, an even number; the last group is whole.
ISP_BOTH inline int64_t row_bytes(const RawConvCall& c, int64_t pixels) {
  if (c.packing == Packing::none) return pixels * sensor_bytes(c.sensor);
  const int four = bytes_of_four(c.packing);
  return four == 6 ? pixels / 2 * 3 : (pixels + 3) / 4 * four;
}

// Forward: a step of a product takes the four planes of 4 positions. A warp stages 16 channels of its
// 32 pixels at once, with a gap that keeps neighbours in different banks.
inline constexpr int kPositions = 4, kStagedChannels = 16, kGap = 8;

// Either [kStagedChannels][pixels + gap] or [pixels][kStagedChannels + gap] of `words` bytes each.
ISP_BOTH inline constexpr int staged_bytes(int words) {
  return words * kTileColumns * (kStagedChannels + kGap);
}

// `word_rows`: of the packed tile, or 0 for those of the input.
inline Layout tile_layout(const RawConvCall& c, int words, int word_rows = 0) {
  Layout l = {};
  l.rows = (kTileRows - 1) * c.stride + c.kernel;
  l.columns = (kTileColumns - 1) * c.stride + c.kernel;
  l.pitch = l.columns;
  l.word_rows = word_rows ? word_rows : l.rows;
  // Packed rows may begin in the middle of a group.
  const int pixels = 2 * l.columns + (c.packing == Packing::none ? 0 : 2);
  l.raw_pitch = round_up(static_cast<int>(row_bytes(c, pixels)) + 15, 16);
  l.raw = 0;
  l.packed = l.raw + 2 * l.rows * l.raw_pitch;
  l.offsets = round_up(l.packed + 4 * words * l.word_rows * l.pitch, 16);
  return l;
}

// `words`: of an operand's four planes, 2 or 4: as many as an element of the output has bytes.
inline Layout forward_layout(const RawConvCall& c, int words) {
  Layout l = tile_layout(c, words);
  const int positions = round_up(c.kernel * c.kernel, kPositions);
  l.weights = l.offsets + round_up(4 * positions, 16);
  l.staging = l.weights + 4 * words * positions * c.group;
  l.total = l.staging + kWarps * staged_bytes(words);
  return l;
}

// Backward: positions come in groups of 8, the last of which has one more for the bias.
ISP_BOTH inline constexpr int position_groups(int kernel) { return (kernel * kernel + 8) / 8; }

// Words from one channel of the tile's gradient to the next: 4 more than a multiple of 32, so that the
// eight channels and four pixels of a fragment lie in 32 banks. `bytes`: of an element.
ISP_BOTH inline constexpr int gradient_pitch(int bytes) {
  return kTileRows * kTileColumns * bytes / 4 + 4;
}

// Rows of words from one pair of output rows to the next: what pairs share is there once, and what no
// pair reads is not there.
ISP_BOTH inline int pair_step(const RawConvCall& c) {
  return c.kernel < 2 * c.stride ? c.kernel : 2 * c.stride;
}

inline Layout backward_layout(const RawConvCall& c, int bytes) {
  const int pairs = kTileRows / 2;
  Layout l = tile_layout(c, 4, bytes == 4 ? 0 : (pairs - 1) * pair_step(c) + c.kernel);
  l.gradient = l.offsets + 4 * round_up(8 * position_groups(c.kernel), 4);
  l.total = l.gradient + 4 * gradient_pitch(bytes) * c.group;
  return l;
}

// Places for the sums of a block: as many as its warps share a product's steps in.
inline int parts_of_block(const RawConvCall& c) {
  const int blocks = c.group / 16 * position_groups(c.kernel);
  return kWarps / (blocks > 4 ? 8 : blocks > 2 ? 4 : blocks);
}

// Fills in what follows from the rest of a call. `bytes`: of an element of the output.
inline void plan_tiles(RawConvCall& c, int bytes) {
  c.tile_columns = (c.out_width + kTileColumns - 1) / kTileColumns;
  c.tiles_of_sample = c.tile_columns * ((c.out_height + kTileRows - 1) / kTileRows);
  c.tiles = int64_t(c.tiles_of_sample) * c.batch;
  const int size = sensor_bytes(c.sensor);
  c.aligned = reinterpret_cast<uintptr_t>(c.mosaic) % 16 == 0 && c.mosaic_row * size % 16 == 0 &&
              c.mosaic_sample * size % 16 == 0;
  const int64_t line = c.channels_last ? c.channels : int64_t(c.out_height) * c.out_width;
  c.out_aligned = reinterpret_cast<uintptr_t>(c.out) % 16 == 0 &&
                  reinterpret_cast<uintptr_t>(c.grad) % 16 == 0 && line * bytes % 16 == 0 &&
                  (c.channels_last || c.out_width * bytes % 16 == 0);
}

// What every GPU from sm_80 on gives a block (the least is that of sm_86 and 89).
inline constexpr int kSharedBytes = 99 * 1024;

// Chooses the channels of a block: as many as fit, since each group converts every tile again. False
// where not even 32 fit.
inline bool plan_forward(RawConvCall& c, int words, Layout& l) {
  const int most = round_up(c.channels, 32);
  for (c.group = most; c.group > 32; c.group -= 32) {
    l = forward_layout(c, words);
    if (l.total <= kSharedBytes) return true;
  }
  l = forward_layout(c, words);
  return l.total <= kSharedBytes;
}

// The same for the backward pass: 64 channels where they fit, else 32.
inline bool plan_backward(RawConvCall& c, int bytes, Layout& l) {
  for (c.group = c.channels > 32 ? 64 : 32; c.group >= 32; c.group -= 32) {
    l = backward_layout(c, bytes);
    if (l.total <= kSharedBytes) return true;
  }
  return false;
}

}  // namespace isp_distill::cuda
