// raw_conv, backward: the gradients of weight and bias, a matrix product summed over all pixels.
//
// dW[channel, position, plane] sums g[channel, pixel] * x[pixel, position, plane] over pixels, with g
// the output's gradient where the activation lets it through. The bias is one more position whose input is
// 1. A block keeps the sums of a group of channels in registers while it walks through its tiles; each
// part of a block then writes its sums to a place of its own, and a second kernel adds the places up in
// their order: no atomics, the same bits every time.
//
// A fragment's 16-bit element pairs are two pixels of one column, `stride` input rows apart: a word of
// the tile holds both, so that every position, odd or even, is one aligned load. Lane g of a fragment's
// eight columns takes position g and all four planes at once, for four fragments.
#pragma once

#include "cuda/raw_conv/tile.h"

namespace isp_distill::cuda {

// Output rows whose values share a word.
template <class Operand>
inline constexpr int kPaired = 4 / Operand::kBytes;

// Whether the activation lets a gradient through, as it does for NaN; relu6 is told from float32 only.
ISP_DEVICE bool passes(float out, Activation activation) {
  return !(out <= 0.0f || (activation == Activation::relu6 && out >= 6.0f));
}

// `N` consecutive elements of an output, of which `count` are there; the others are 0.
template <class Operand, int N>
ISP_DEVICE void load_values(const void* image, int64_t at, int count, bool aligned, float (&v)[N]) {
  static_assert(N * Operand::kBytes == 16);
  const char* from = static_cast<const char*>(image) + at * Operand::kBytes;
  if (aligned && count >= N) {
    const Four together = load_as<Four>(from);
    ISP_UNROLL for (int j = 0; j < N; ++j) v[j] = Operand::element(together, j);
  } else {
    ISP_UNROLL for (int j = 0; j < N; ++j) {
      v[j] = j < count ? Operand::value(from + j * Operand::kBytes) : 0.0f;
    }
  }
}

// The gradient of `N` consecutive elements before the activation (none, relu or relu6).
template <class Operand, int N>
ISP_DEVICE void load_gradients(const RawConvCall& c, int64_t at, int count, float (&g)[N]) {
  load_values<Operand>(c.grad, at, count, c.out_aligned, g);
  if (c.activation == Activation::none) return;
  float out[N];
  load_values<Operand>(c.out, at, count, c.out_aligned, out);
  ISP_UNROLL for (int j = 0; j < N; ++j) g[j] = passes(out[j], c.activation) ? g[j] : 0.0f;
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

// Where the words lie whose first row is `row` of the tile's input; -1 where no pair reads them.
ISP_DEVICE int word_row(const RawConvCall& c, const Layout& l, int row) {
  if (row < 0) return -1;
  const int step = pair_step(c), pair = row / (2 * c.stride), rest = row % (2 * c.stride);
  const int at = pair * step + rest;
  return at < l.word_rows && (step == 2 * c.stride || rest < step) ? at : -1;
}

// The tile's input: [row][column][plane] words; a 16-bit one holds the row and that `stride` below.
template <class Operand>
ISP_DEVICE void fill_input(const RawConvCall& c, const Layout& l, const Place& place) {
  char* packed = shared_memory() + l.packed;
  convert_tile(c, l, place, [&](int row, int column, const float(&plane)[4]) {
    if constexpr (kPaired<Operand> == 1) {
      store_as(packed + (row * l.pitch + column) * 16, Operand::pack(plane));
    } else {
      // The low half of the word that begins in this row, the high half of the one `stride` above.
      const Two both = Operand::pack(plane);
      const int low = word_row(c, l, row), high = word_row(c, l, row - c.stride);
      ISP_UNROLL for (int k = 0; k < 4; ++k) {
        const uint16_t bits = static_cast<uint16_t>(both.word[k / 2] >> 16 * (k % 2));
        if (low >= 0) store_as(packed + (low * l.pitch + column) * 16 + 4 * k, bits);
        if (high >= 0) store_as(packed + (high * l.pitch + column) * 16 + 4 * k + 2, bits);
      }
    }
  });
}

// What a warp computes: sums of up to kSums blocks of 16 channels x 8 positions x 4 planes, over every
// `parts`-th step of a tile. Where there are fewer blocks than warps, several warps share one.
struct Share {
  int first, apart, part, parts;
};
inline constexpr int kSums = 4;

ISP_DEVICE Share share_of(int blocks) {
  const int warp = threadIdx.x / 32;
  const int apart = blocks > 4 ? 8 : blocks > 2 ? 4 : blocks;
  return {warp % apart, apart, warp / apart, kWarps / apart};
}

// Adds a tile: 16 (of 16-bit operands) or 8 pixels a step.
template <class Operand>
ISP_DEVICE void add_tile(const RawConvCall& c, const Layout& l, const Share& share, int blocks,
                         float (&sum)[kSums][4][4]) {
  constexpr int kP = kPaired<Operand>, kLines = kTileRows / kP;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int area = c.kernel * c.kernel, groups = position_groups(c.kernel);
  const int pitch = gradient_pitch(Operand::kBytes);
  const uint32_t* gradient = reinterpret_cast<const uint32_t*>(shared_memory() + l.gradient);
  const char* packed = shared_memory() + l.packed;
  const int* offsets = reinterpret_cast<const int*>(shared_memory() + l.offsets);
  ISP_UNROLL for (int i = 0; i < kSums; ++i) {
    const int block = share.first + i * share.apart;
    if (block >= blocks) break;  // the same for the whole warp
    const int channel = block / groups * 16, position = block % groups * 8 + g;
    const char* input = packed + offsets[position];
    const uint32_t* of_channel = gradient + (channel + g) * pitch + t;
    const bool there = position < area;
    const uint32_t one = position == area ? Operand::kOne : 0;
    ISP_ROLLED for (int step = share.part; step < kLines * 4; step += share.parts) {
      const int line = step / 4, column = step % 4 * 8;
      const uint32_t* at = of_channel + line * kTileColumns + column;
      const uint32_t a[4] = {at[0], at[8 * pitch], at[4], at[8 * pitch + 4]};
      const int row = line * (kP == 1 ? c.stride : pair_step(c));
      const char* from = input + (row * l.pitch + (column + t) * c.stride) * 16;
      const Four x0 = load_as<Four>(from), x1 = load_as<Four>(from + 4 * c.stride * 16);
      ISP_UNROLL for (int k = 0; k < 4; ++k) {
        const uint32_t b[2] = {there ? x0.word[k] : k == 0 ? one : 0,
                               there ? x1.word[k] : k == 0 ? one : 0};
        Operand::multiply(sum[i][k], a, b);
      }
    }
  }
}

// Writes a warp's sums to its part's place.
ISP_DEVICE void write_sums(const RawConvCall& c, const Share& share, int blocks, int first_channel,
                           const float (&sum)[kSums][4][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int area = c.kernel * c.kernel, groups = position_groups(c.kernel);
  const int64_t place = int64_t(blockIdx.x) * share.parts + share.part;
  float* to_weight = c.weight_sums + place * c.channels * 4 * area;
  float* to_bias = c.bias_sums + place * c.channels;
  ISP_UNROLL for (int i = 0; i < kSums; ++i) {
    const int block = share.first + i * share.apart;
    if (block >= blocks) break;
    ISP_UNROLL for (int j = 0; j < 4; ++j) {
      const int channel = first_channel + block / groups * 16 + g + 8 * (j / 2);
      const int position = block % groups * 8 + 2 * t + j % 2;
      if (channel >= c.channels) continue;
      if (position == area) to_bias[channel] = sum[i][0][j];
      if (position >= area) continue;
      ISP_UNROLL for (int k = 0; k < 4; ++k) {
        to_weight[(channel * 4 + k) * area + position] = sum[i][k][j];
      }
    }
  }
}

// Grid: persistent blocks, groups of channels.
template <class Operand>
ISP_DEVICE void backward_block(const RawConvCall& c, const Layout& l) {
  const int first_channel = blockIdx.y * c.group, size = sensor_bytes(c.sensor);
  const int area = c.kernel * c.kernel, groups = position_groups(c.kernel);
  const int blocks = c.group / 16 * groups;
  int* offsets = reinterpret_cast<int*>(shared_memory() + l.offsets);
  for (int p = threadIdx.x; p < groups * 8; p += kThreads) {
    offsets[p] = p < area ? (p / c.kernel * l.pitch + p % c.kernel) * 16 : 0;
  }
  const Share share = share_of(blocks);
  float sum[kSums][4][4] = {};
  int64_t tile = blockIdx.x;
  if (tile < c.tiles) stage_tile(c, l, place_of(c, tile), size);
  commit_copies();
  for (; tile < c.tiles; tile += gridDim.x) {
    const Place place = place_of(c, tile);
    fill_gradient<Operand>(c, l, place, first_channel);
    wait_copies<0>();
    __syncthreads();
    fill_input<Operand>(c, l, place);
    __syncthreads();
    if (tile + gridDim.x < c.tiles) stage_tile(c, l, place_of(c, tile + gridDim.x), size);
    commit_copies();
    add_tile<Operand>(c, l, share, blocks, sum);
    __syncthreads();
  }
  wait_copies<0>();
  write_sums(c, share, blocks, first_channel, sum);
}

// Adds `places` vectors of `size` sums up, in their order: 32 of them in a block, eight threads each.
ISP_DEVICE void add_up_block(const float* sums, float* out, int places, int size) {
  float* parts = reinterpret_cast<float*>(shared_memory());
  const int at = blockIdx.x * 32 + threadIdx.x % 32, part = threadIdx.x / 32;
  float total = 0.0f;
  if (at < size) {
    for (int i = part; i < places; i += 8) total += sums[int64_t(i) * size + at];
  }
  parts[threadIdx.x] = total;
  __syncthreads();
  if (part == 0 && at < size) {
    for (int i = 1; i < 8; ++i) total += parts[32 * i + threadIdx.x];
    out[at] = total;
  }
}

}  // namespace isp_distill::cuda
