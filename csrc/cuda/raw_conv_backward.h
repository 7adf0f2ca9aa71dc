// raw_conv, backward: the gradients of weight and bias, a matrix product summed over all pixels.
//
// dW[channel, position, plane] sums g[channel, pixel] * x[pixel, position, plane] over pixels, with g
// the output's gradient times the activation's derivative. The bias is one more position whose input is
// 1. A block keeps the sums of a group of channels in registers while it walks through its tiles; each
// part of a block then writes its sums to a place of its own, and a second kernel adds the places up in
// their order: no atomics, the same bits every time.
//
// A fragment's 16-bit element pairs are two pixels of one column, `stride` input rows apart: a word of
// the tile holds both, so that every position, odd or even, is one aligned load. Lane g of a fragment's
// eight columns takes position g and all four planes at once, for four fragments.
#pragma once

#include "cuda/raw_conv_tile.h"

namespace isp_distill::cuda {

// Output rows whose values share a word.
template <class Operand>
inline constexpr int kPaired = 4 / Operand::kBytes;

ISP_DEVICE float derivative(float out, Activation activation) {
  if (activation == Activation::relu) return out > 0.0f ? 1.0f : 0.0f;
  if (activation == Activation::relu6) return out > 0.0f && out < 6.0f ? 1.0f : 0.0f;
  return 1.0f;
}

// Consecutive elements of the gradient, times the derivative; `count` of them are there.
template <class Operand, int N>
ISP_DEVICE void load_gradients(const RawConvCall& c, int64_t at, int count, float (&g)[N]) {
  static_assert(N * Operand::kBytes == 16);
  alignas(16) char of_grad[16], of_out[16];
  const char* grad = static_cast<const char*>(c.grad) + at * Operand::kBytes;
  const char* out = static_cast<const char*>(c.out) + at * Operand::kBytes;
  const bool derives = c.activation != Activation::none;
  const bool together = c.out_aligned && count >= N;
  if (together) {
    store_as(of_grad, load_as<Four>(grad));
    if (derives) store_as(of_out, load_as<Four>(out));
  }
  ISP_UNROLL for (int j = 0; j < N; ++j) {
    const int b = j * Operand::kBytes;
    g[j] = 0.0f;
    if (j < count) {
      g[j] = Operand::value(together ? of_grad + b : grad + b);
      if (derives) g[j] *= derivative(Operand::value(together ? of_out + b : out + b), c.activation);
    }
  }
}

template <class Operand>
ISP_DEVICE uint32_t gradient_word(const float (&g)[kPaired<Operand>]) {
  if constexpr (kPaired<Operand> == 1) {
    return bits_of(g[0]);
  } else {
    return Operand::pair(g[0], g[1]);
  }
}

// The tile's gradient in shared memory: [channel][rows / paired][column] words; zero beyond the output.
template <class Operand>
ISP_DEVICE void fill_gradient(const RawConvCall& c, const Layout& l, const Place& place,
                              int first_channel) {
  constexpr int kEach = 16 / Operand::kBytes, kP = kPaired<Operand>, kLines = kTileRows / kP;
  uint32_t* to = reinterpret_cast<uint32_t*>(shared_memory() + l.gradient);
  const int64_t area = int64_t(c.out_height) * c.out_width;
  const int pitch = gradient_pitch(Operand::kBytes);
  const int lines = c.channels_last ? kTileColumns : c.group;   // each of consecutive elements
  const int units = (c.channels_last ? c.group : kTileColumns) / kEach;
  for (int i = threadIdx.x; i < kLines * lines * units; i += kThreads) {
    const int unit = i % units, line = i / units % lines, pair = i / units / lines;
    const int channel = first_channel + (c.channels_last ? unit * kEach : line);
    const int column = c.channels_last ? line : unit * kEach, x = place.out_column + column;
    const int count = x < c.out_width && channel < c.channels
                          ? (c.channels_last ? c.channels - channel : c.out_width - x)
                          : 0;
    float g[kP][kEach];
    ISP_UNROLL for (int r = 0; r < kP; ++r) {
      const int y = place.out_row + pair * kP + r;
      const int64_t pixel = int64_t(y) * c.out_width + x;
      const int64_t at = c.channels_last
                             ? (place.sample * area + pixel) * c.channels + channel
                             : (int64_t(place.sample) * c.channels + channel) * area + pixel;
      load_gradients<Operand>(c, at, y < c.out_height ? count : 0, g[r]);
    }
    uint32_t word[kEach];
    ISP_UNROLL for (int j = 0; j < kEach; ++j) {
      float both[kP];
      ISP_UNROLL for (int r = 0; r < kP; ++r) both[r] = g[r][j];
      word[j] = gradient_word<Operand>(both);
    }
    uint32_t* first = to + (channel - first_channel) * pitch + pair * kTileColumns + column;
    if (c.channels_last) {
      ISP_UNROLL for (int j = 0; j < kEach; ++j) first[j * pitch] = word[j];
    } else {
      ISP_UNROLL for (int j = 0; j < kEach; j += 4) {
        store_as(first + j, Four{{word[j], word[j + 1], word[j + 2], word[j + 3]}});
      }
    }
  }
}

// The tile's input: [row][column][plane] words; a 16-bit one holds the row and that `stride` below.
template <class Operand>
ISP_DEVICE void fill_input(const RawConvCall& c, const Layout& l, const Place& place) {
  char* packed = shared_memory() + l.packed;
  convert_tile(c, l, place, [&](int row, int column, const float(&plane)[4]) {
    char* to = packed + (row * l.pitch + column) * 16;
    if constexpr (kPaired<Operand> == 1) {
      store_as(to, Operand::pack(plane));
    } else {
      const Two both = Operand::pack(plane);
      char* above = to - c.stride * l.pitch * 16 + 2;
      ISP_UNROLL for (int k = 0; k < 4; ++k) {
        const uint16_t bits = static_cast<uint16_t>(both.word[k / 2] >> 16 * (k % 2));
        if (row < l.paired_rows) store_as(to + 4 * k, bits);
        if (row >= c.stride) store_as(above + 4 * k, bits);
      }
    }
  });
}

}  // namespace isp_distill::cuda
