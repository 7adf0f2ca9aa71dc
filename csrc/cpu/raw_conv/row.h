// One output row of the convolution, vectorised along x: the forward pass of a contiguous output, and
// what the backward pass recomputes of an activation that cannot be told from its result.
#pragma once

#include "cpu/raw_conv/tile.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// [channel block][tap][channel in the block], then the bias; zero for channels that are not there.
static void pack_weights(const RawConv& c, int64_t block, float* packed) {
  const int64_t count = 4 * c.kernel * c.kernel;
  const int64_t blocks = (c.channels + block - 1) / block;
  float* bias = packed + blocks * count * block;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t i = 0; i < block; ++i) {
        const int64_t channel = b * block + i;
        *packed++ = channel < c.channels ? c.weight[channel * count + t] : 0.0f;
      }
    }
  }
  for (int64_t channel = 0; channel < blocks * block; ++channel) {
    bias[channel] = c.bias && channel < c.channels ? c.bias[channel] : 0.0f;
  }
}

ISP_INLINE int64_t packed_floats(const RawConv& c, int64_t block) {
  return round_up(c.channels, block) * (4 * c.kernel * c.kernel + 1);
}

struct Output {
  char* row;        // of channel 0, at the piece's first column
  int64_t channel;  // bytes from one channel to the next
  int64_t columns;
  Element type;
  Activation activation;
};

// The output lines of a tile, a few of each of kBlock channels, are in no cache, and stores leave the
// processor in order: fetched while the taps are added up, they cost nothing (else some 300 cycles a
// tile, a quarter of a 3x3 kernel's). Lines beyond the output's end are only hints.
template <int wide>
ISP_INLINE void fetch_for_writing(const char* to, int64_t channel) {
  constexpr int kLine = 64;
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 8
    for (int b = 0; b <= 4 * kLanes * wide / kLine; ++b) __builtin_prefetch(to + b * kLine, 1);
    to += channel;
  }
}

template <int wide>
static void block_along_x(
    const float* const* taps, int64_t count, int64_t x, const float* weight, const float* bias,
    int64_t first_channel, int64_t channels, const Output& out) {
  char* to = out.row + first_channel * out.channel;
  fetch_for_writing<wide>(to + x * bytes_of(out.type), out.channel);
  Vec acc[kBlock][wide];
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 8
    for (int b = 0; b < wide; ++b) acc[c][b] = broadcast(bias[c]);
  }
  tile_along_x<kBlock, wide>(taps, count, x, weight, acc);
  activate_tile<kBlock * wide>(&acc[0][0], out.activation);
  const int64_t left = out.columns - x;
  if (out.type == Element::float32 && left >= wide * kLanes && channels >= kBlock) {
    float* p = reinterpret_cast<float*>(to) + x;
#pragma GCC unroll 8
    for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 8
      for (int b = 0; b < wide; ++b) store(p + b * kLanes, acc[c][b]);
      p = reinterpret_cast<float*>(reinterpret_cast<char*>(p) + out.channel);
    }
    return;
  }
  Vec copy[kBlock][wide];
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 8
    for (int b = 0; b < wide; ++b) copy[c][b] = acc[c][b];
  }
  const int64_t bytes = bytes_of(out.type);
  for (int64_t c = 0; c < at_most(kBlock, channels); ++c) {
    for (int64_t b = 0; b < wide && b * kLanes < left; ++b) {
      store_as(to + (x + b * kLanes) * bytes, out.type, copy[c][b], left - b * kLanes);
    }
    to += out.channel;
  }
}

// A row is cut into tiles of almost equal width, so that none is a sliver that wastes registers.
static void row_along_x(
    const RawConv& c, const float* const* taps, const float* packed, const Output& out) {
  const int64_t count = 4 * c.kernel * c.kernel;
  const int64_t blocks = (c.channels + kBlock - 1) / kBlock;
  const float* bias = packed + blocks * count * kBlock;
  const int64_t vectors = (out.columns + kLanes - 1) / kLanes;
  const int64_t tiles = (vectors + kWide - 1) / kWide;
  int64_t x = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t wide = vectors * (tile + 1) / tiles - vectors * tile / tiles;
    for (int64_t b = 0; b < blocks; ++b) {
      const float* weight = packed + b * count * kBlock;
      const int64_t left = c.channels - b * kBlock;
      if (wide == 3) {
        block_along_x<3>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out);
      } else if (wide == 2) {
        block_along_x<2>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out);
      } else {
        block_along_x<1>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out);
      }
    }
    x += wide * kLanes;
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
