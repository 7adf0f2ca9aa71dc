// The inner loops of the convolution: tiles of the output that stay in registers over all taps.
//
// A tap is a pointer: taps[t][x] is what tap t reads for output column x (see strip.h). With
// that, kernel size, stride, padding and the CFA are out of the inner loop, which is a plain
// acc[channel][x] += weight[t][channel] * taps[t][x].
//
// An output row in contiguous layout is vectorised along x: kBlock channels x kWide vectors. Per tap
// that is kWide loads and kBlock broadcasts for kBlock * kWide multiply-adds: (8, 3) on 32 registers
// leaves 24 accumulators, 3 inputs and a weight, and 11 loads for 24 multiply-adds, so the two load
// ports never hold back the multipliers. channels_last is vectorised along the channels: kPixels
// pixels x kDeep vectors, kDeep loads and kPixels broadcasts.
#pragma once

#include "cpu/raw_conv/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr int kBlock = kRegisters == 32 ? 8 : 4;
constexpr int kWide = 3;
constexpr int kPixels = kRegisters == 32 ? 12 : 6;
constexpr int kDeep = 2;
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

template <int pixels, int deep>
ISP_INLINE void tile_along_channels(
    const float* const* taps, int64_t count, int64_t x, const float* weight, Vec (*acc)[deep]) {
  for (int64_t t = 0; t < count; ++t, weight += deep * kLanes) {
    const float* in = taps[t] + x;
    Vec w[deep];
#pragma GCC unroll 8
    for (int d = 0; d < deep; ++d) w[d] = load(weight + d * kLanes);
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) {
      const Vec v = broadcast(in[p]);
#pragma GCC unroll 8
      for (int d = 0; d < deep; ++d) acc[p][d] += w[d] * v;
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
  if (type == Element::float32) {
    if (count >= kLanes) {
      store(static_cast<float*>(out), v);
    } else {
      memcpy(out, &v, 4 * count);
    }
    return;
  }
  const HalfWord h = type == Element::bfloat16 ? to_bfloat16(v) : to_float16(v);
  if (count >= kLanes) {
    store_half(out, h);
  } else {
    memcpy(out, &h, 2 * count);
  }
}

ISP_INLINE Vec load_as(const void* in, Element type, int64_t count) {
  if (type == Element::float32) {
    if (count >= kLanes) return load(static_cast<const float*>(in));
    Vec v = {};
    memcpy(&v, in, 4 * count);
    return v;
  }
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

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
