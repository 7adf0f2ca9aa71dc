// The inner loops of the convolution: tiles of the output that stay in registers over all taps, and
// rows of them along x: the forward pass of a contiguous output, and what the backward pass recomputes
// of an activation that cannot be told from its result.
//
// A tap is a pointer: taps[t][x] is what tap t reads for output column x (see strip.h). With
// that, kernel size, stride, padding and the CFA are out of the inner loop, which is a plain
// acc[channel][x] += weight[t][channel] * taps[t][x].
//
// An output row in contiguous layout is vectorised along x: kBlock channels x kWide vectors. Per tap
// that is kWide loads and kBlock broadcasts for kBlock * kWide multiply-adds: (8, 3) on 32 registers
// leaves 24 accumulators, 3 inputs and a weight, and 11 loads for 24 multiply-adds, so the two load
// ports never hold back the multipliers.
#pragma once

#include "cpu/raw_conv/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr int kBlock = kRegisters == 32 ? 8 : 4;
constexpr int kWide = 3;
// Of the four planes of the input's gradient, which are the channels of a tile there.
constexpr int kPlanes = 4;
constexpr int kPlanesWide = kRegisters == 32 ? 6 : 3;

template <int block, int wide>
ISP_INLINE void tile_along_x(
    const float* const* taps, int64_t count, int64_t x, const float* weight, Vec (*acc)[wide]) {
  for (int64_t t = 0; t < count; ++t, weight += block) {
    const float* in = taps[t] + x;
    Vec v[wide];
#pragma GCC unroll 8
    for (int b = 0; b < wide; ++b) v[b] = load(in + b * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < block; ++c) {
      const Vec w = broadcast(weight[c]);
#pragma GCC unroll 8
      for (int b = 0; b < wide; ++b) acc[c][b] += w * v[b];
    }
  }
}

// ---------------------------------------------------------------------------------- the epilogue

// NaN stays NaN.
ISP_INLINE Vec activate(Vec v, Activation activation) {
  switch (activation) {
    case Activation::none:
      return v;
    case Activation::relu:
      return max(broadcast(0.0f), v);
    case Activation::relu6:
      return min(broadcast(6.0f), max(broadcast(0.0f), v));
    case Activation::silu:
      return v / (1.0f + exp(-v));
    case Activation::gelu:
      return v * normal_cdf(v);
  }
  return v;
}

// A compile-time choice for the cheap epilogues keeps the accumulators in registers; the others loop
// over a copy in the cache, since their polynomials need the registers.
template <int n>
ISP_INLINE void activate_tile(Vec* acc, Activation activation) {
  if (activation == Activation::none) return;
  if (activation == Activation::relu) {
#pragma GCC unroll 32
    for (int i = 0; i < n; ++i) acc[i] = max(broadcast(0.0f), acc[i]);
    return;
  }
  if (activation == Activation::relu6) {
#pragma GCC unroll 32
    for (int i = 0; i < n; ++i) acc[i] = min(broadcast(6.0f), max(broadcast(0.0f), acc[i]));
    return;
  }
  Vec copy[n];
#pragma GCC unroll 32
  for (int i = 0; i < n; ++i) copy[i] = acc[i];
  if (activation == Activation::silu) {
#pragma GCC unroll 1
    for (int i = 0; i < n; ++i) copy[i] = activate(copy[i], Activation::silu);
  } else {
#pragma GCC unroll 1
    for (int i = 0; i < n; ++i) copy[i] = activate(copy[i], Activation::gelu);
  }
#pragma GCC unroll 32
  for (int i = 0; i < n; ++i) acc[i] = copy[i];
}

// ------------------------------------------------------------------------ reading and writing rows

ISP_INLINE int bytes_of(Element type) {
  switch (type) {
    case Element::float32:
    case Element::int32:
      return 4;
    case Element::float64:
      return 8;
    case Element::uint8:
      return 1;
    default:
      return 2;
  }
}

// Writes `count` (at most kLanes) consecutive elements.
ISP_INLINE void store_as(void* out, Element type, Vec v, int64_t count) {
  if (type == Element::float32) return store_first(static_cast<float*>(out), v, count);
  const HalfWord h = type == Element::bfloat16 ? to_bfloat16(v) : to_float16(v);
  if (count >= kLanes) {
    store_half(out, h);
  } else {
    memcpy(out, &h, 2 * count);
  }
}

ISP_INLINE Vec load_as(const void* in, Element type, int64_t count) {
  if (type == Element::float32) return load_first(static_cast<const float*>(in), count);
  HalfWord h = {};
  if (count >= kLanes) {
    h = load_half(in);
  } else {
    memcpy(&h, in, 2 * count);
  }
  return type == Element::bfloat16 ? from_bfloat16(h) : from_float16(h);
}

ISP_INLINE float load_one(const void* in, Element type) {
  float x;
  if (type == Element::float32) {
    memcpy(&x, in, 4);
    return x;
  }
  HalfWord h = {};
  memcpy(&h, in, 2);
  return (type == Element::bfloat16 ? from_bfloat16(h) : from_float16(h))[0];
}

ISP_INLINE char* element_at(const Image& image, int64_t offset) {
  return static_cast<char*>(image.data) + offset * bytes_of(image.type);
}

// ------------------------------------------------------------------------------- rows along x

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
// processor in order: fetched while taps are added up, they cost nothing (else some 300 cycles a tile, a
// quarter of a 3x3 kernel's). So few taps as those of a 3x3 kernel last no longer than the memory takes:
// there they are the lines of the next tile. Lines beyond the output's end are only hints.
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
    int64_t first_channel, int64_t channels, const Output& out, const char* lines) {
  char* to = out.row + first_channel * out.channel;
  fetch_for_writing<wide>(lines, out.channel);
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
  const bool few_taps = count <= 64;
  const auto lines_at = [&](int64_t block, int64_t column) {
    return out.row + block * kBlock * out.channel + column * bytes_of(out.type);
  };
  int64_t x = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t wide = vectors * (tile + 1) / tiles - vectors * tile / tiles;
    for (int64_t b = 0; b < blocks; ++b) {
      const float* weight = packed + b * count * kBlock;
      const int64_t left = c.channels - b * kBlock;
      const char* lines = !few_taps        ? lines_at(b, x)
                          : b + 1 < blocks ? lines_at(b + 1, x)
                                           : lines_at(0, x + wide * kLanes);
      if (wide == 3) {
        block_along_x<3>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out, lines);
      } else if (wide == 2) {
        block_along_x<2>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out, lines);
      } else {
        block_along_x<1>(taps, count, x, weight, bias + b * kBlock, b * kBlock, left, out, lines);
      }
    }
    x += wide * kLanes;
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
