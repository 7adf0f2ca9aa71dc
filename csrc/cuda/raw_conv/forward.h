// raw_conv, forward: an implicit matrix product whose left side exists in shared memory only.
//
// out[pixel, channel] = sum over position, plane of x[pixel, position, plane] * weight[...]. A block is
// persistent: it keeps its weights in shared memory and takes every gridDim.x-th tile. While it
// multiplies one tile, the sensor values of the next arrive. A warp owns a row of 32 output pixels and
// takes 32 channels at a time: 2 x 4 fragments of 16 pixels x 8 channels, float32 accumulators.
//
// A step multiplies the four planes of 4 positions. Which of the 16 products is which element of the
// fragment does not matter as long as both sides agree: lane t of a quad takes position t, so the four
// planes of a pixel are one load of 8 (or 16) bytes, and so are the weights.
#pragma once

#include "cuda/raw_conv/tile.h"

namespace isp_distill::cuda {

ISP_DEVICE float activated(float y, Activation activation) {
  if (activation == Activation::relu) return y < 0.0f ? 0.0f : y;
  if (activation == Activation::relu6) return y < 0.0f ? 0.0f : y > 6.0f ? 6.0f : y;
  if (activation == Activation::silu) return y / (1.0f + exp_2(-1.4426950408889634f * y));
  if (activation == Activation::gelu) {
    return 0.5f * y * (1.0f + error_function(y * 0.7071067811865476f));
  }
  return y;
}

// Words from a pixel's first period to that of each position; 0 for those that pad.
template <class Operand>
ISP_DEVICE void fill_offsets(const RawConvCall& c, const Layout& l, int positions) {
  int* offsets = reinterpret_cast<int*>(shared_memory() + l.offsets);
  for (int p = threadIdx.x; p < positions; p += kThreads) {
    const int row = p / c.kernel, column = p % c.kernel;
    offsets[p] = p < c.kernel * c.kernel ? (row * l.pitch + column) * Operand::kWords : 0;
  }
}

// The block's weights as the lanes will load them: [position / 4][channel / 8][lane][plane].
template <class Operand>
ISP_DEVICE void fill_weights(const RawConvCall& c, const Layout& l, int first_channel) {
  const int area = c.kernel * c.kernel, steps = (area + kPositions - 1) / kPositions;
  char* to = shared_memory() + l.weights;
  for (int i = threadIdx.x; i < steps * 4 * c.group; i += kThreads) {
    const int lane = i % 32, rest = i / 32;
    const int channel = first_channel + rest % (c.group / 8) * 8 + lane / 4;
    const int position = rest / (c.group / 8) * kPositions + lane % 4;
    float w[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (channel < c.channels && position < area) {
      const float* from = c.weight + int64_t(channel) * 4 * area + position;
      ISP_UNROLL for (int k = 0; k < 4; ++k) w[k] = from[k * area];
    }
    store_as(to + i * 4 * Operand::kWords, Operand::pack(w));
  }
}

// Adds four positions of 16 pixels x 8 channels. x[0], x[1]: the planes of the lane's two pixels.
template <class Operand>
ISP_DEVICE void add_step(float (&sum)[4], const typename Operand::Word4 (&x)[2],
                         const typename Operand::Word4& w) {
  ISP_UNROLL for (int k = 0; k < Operand::kWords; k += 2) {
    const uint32_t a[4] = {x[0].word[k], x[1].word[k], x[0].word[k + 1], x[1].word[k + 1]};
    const uint32_t b[2] = {w.word[k], w.word[k + 1]};
    Operand::multiply(sum, a, b);
  }
}

template <class Operand>
ISP_DEVICE void store_value(void* to, float value) {
  if constexpr (Operand::kBytes == 4) {
    store_as<float>(to, value);
  } else {
    store_as<uint16_t>(to, static_cast<uint16_t>(Operand::pair(value, 0.0f)));
  }
}

// Writes 16 channels of a warp's 32 pixels, which lie in `staged` as the output wants them: a line is
// a channel's pixels, or (channels_last) a pixel's channels.
template <class Operand>
ISP_DEVICE void write_lines(const RawConvCall& c, const char* staged, int sample, int row, int column,
                            int channel) {
  constexpr int kEach = 16 / Operand::kBytes;
  const int lane = threadIdx.x % 32;
  const int lines = c.channels_last ? kTileColumns : kStagedChannels;
  const int length = c.channels_last ? kStagedChannels : kTileColumns;
  const int units = length / kEach;
  const int pixels = c.out_width - column, channels = c.channels - channel;
  const int lines_there = c.channels_last ? pixels : channels;
  const int length_there = c.channels_last ? channels : pixels;
  const int64_t area = int64_t(c.out_height) * c.out_width;
  for (int i = lane; i < lines * units; i += 32) {
    const int line = i / units, begin = i % units * kEach;
    if (line >= lines_there || begin >= length_there) continue;
    const char* from = staged + (line * (length + kGap) + begin) * Operand::kBytes;
    const int64_t pixel = int64_t(row) * c.out_width + column;
    const int64_t at = c.channels_last
                           ? (sample * area + pixel + line) * c.channels + channel + begin
                           : (int64_t(sample) * c.channels + channel + line) * area + pixel + begin;
    char* to = static_cast<char*>(c.out) + at * Operand::kBytes;
    if (c.out_aligned && begin + kEach <= length_there) {
      store_as(to, load_as<Four>(from));
    } else {
      for (int j = 0; j < kEach && begin + j < length_there; ++j) {
        if constexpr (Operand::kBytes == 4) {
          copy_element<uint32_t>(to + 4 * j, from + 4 * j);
        } else {
          copy_element<uint16_t>(to + 2 * j, from + 2 * j);
        }
      }
    }
  }
}

// 32 channels of a warp's row of 32 pixels; `channel` counts from the block's first.
template <class Operand>
ISP_DEVICE void convolve_row(const RawConvCall& c, const Layout& l, const Place& place,
                             int first_channel, int channel) {
  using Word4 = typename Operand::Word4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int area = c.kernel * c.kernel, steps = (area + kPositions - 1) / kPositions;
  const int* offsets = reinterpret_cast<const int*>(shared_memory() + l.offsets);
  const uint32_t* pixels = reinterpret_cast<const uint32_t*>(shared_memory() + l.packed) +
                           (warp * l.pitch + g) * c.stride * Operand::kWords;
  const int apart = 8 * c.stride * Operand::kWords;  // from pixel g to pixel g + 8
  const char* weights = shared_memory() + l.weights + (channel / 8 * 32 + lane) * sizeof(Word4);
  const int step_bytes = c.group / 8 * 32 * sizeof(Word4);
  float sum[2][4][4] = {};
  ISP_ROLLED for (int step = 0; step < steps; ++step) {
    const uint32_t* at = pixels + offsets[step * kPositions + t];
    // Nothing of what pads may count: zero times infinity would be NaN.
    const bool there = step * kPositions + t < area;
    Word4 x[2][2];
    ISP_UNROLL for (int m = 0; m < 4; ++m) {
      x[m / 2][m % 2] = load_as<Word4>(at + m * apart);
      ISP_UNROLL for (int k = 0; k < Operand::kWords; ++k) {
        x[m / 2][m % 2].word[k] = there ? x[m / 2][m % 2].word[k] : 0;
      }
    }
    ISP_UNROLL for (int n = 0; n < 4; ++n) {
      const Word4 w = load_as<Word4>(weights + n * 32 * sizeof(Word4));
      ISP_UNROLL for (int m = 0; m < 2; ++m) add_step<Operand>(sum[m][n], x[m], w);
    }
    weights += step_bytes;
  }
  char* staged = shared_memory() + l.staging + warp * staged_bytes(Operand::kWords);
  const int out_row = place.out_row + warp;
  ISP_UNROLL for (int half = 0; half < 2; ++half) {
    const int begin = first_channel + channel + half * kStagedChannels;
    if (begin >= c.channels) break;  // the same for the whole warp
    ISP_UNROLL for (int m = 0; m < 2; ++m) {
      ISP_UNROLL for (int n = 0; n < 2; ++n) {
        ISP_UNROLL for (int i = 0; i < 4; ++i) {
          const int pixel = 16 * m + g + 8 * (i / 2), of_block = 8 * n + 2 * t + i % 2;
          const bool there = begin + of_block < c.channels;
          float y = sum[m][2 * half + n][i];
          if (c.bias && there) y += c.bias[begin + of_block];
          y = activated(y, c.activation);
          const int at = c.channels_last ? pixel * (kStagedChannels + kGap) + of_block
                                         : of_block * (kTileColumns + kGap) + pixel;
          store_value<Operand>(staged + at * Operand::kBytes, y);
        }
      }
    }
    __syncwarp();
    if (out_row < c.out_height) {
      write_lines<Operand>(c, staged, place.sample, out_row, place.out_column, begin);
    }
    __syncwarp();
  }
}

// Grid: persistent blocks, groups of channels.
template <class Operand>
ISP_DEVICE void forward_block(const RawConvCall& c, const Layout& l) {
  const int first_channel = blockIdx.y * c.group, size = sensor_bytes(c.sensor);
  fill_offsets<Operand>(c, l, round_up(c.kernel * c.kernel, kPositions));
  fill_weights<Operand>(c, l, first_channel);
  uint32_t* packed = reinterpret_cast<uint32_t*>(shared_memory() + l.packed);
  int64_t tile = blockIdx.x;
  if (tile < c.tiles) stage_tile(c, l, place_of(c, tile), size);
  commit_copies();
  for (; tile < c.tiles; tile += gridDim.x) {
    const Place place = place_of(c, tile);
    wait_copies<0>();
    __syncthreads();
    convert_tile(c, l, place, [&](int row, int column, const float(&plane)[4]) {
      store_as(packed + (row * l.pitch + column) * Operand::kWords, Operand::pack(plane));
    });
    __syncthreads();
    if (tile + gridDim.x < c.tiles) stage_tile(c, l, place_of(c, tile + gridDim.x), size);
    commit_copies();
    for (int channel = 0; channel < c.group && first_channel + channel < c.channels; channel += 32) {
      convolve_row<Operand>(c, l, place, first_channel, channel);
    }
  }
  wait_copies<0>();
}

}  // namespace isp_distill::cuda
