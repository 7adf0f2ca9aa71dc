// raw_conv, forward: one piece of the output (see call.h) of activation(conv2d(strip)).
//
// Predicted floor: 4 * kernel^2 multiply-adds an output, at the processor's peak rate, plus converting
// each mosaic value once (about 13 vector instructions for 2 * kLanes values).
#include "cpu/raw_conv/tile.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {
namespace {

// channels_last is vectorised along the channels: kPixels pixels x kDeep vectors, kDeep loads and
// kPixels broadcasts for kPixels * kDeep multiply-adds.
constexpr int kPixels = kRegisters == 32 ? 12 : 6;
constexpr int kDeep = 2;

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

template <int deep>
void block_along_channels(
    const float* const* taps, int64_t count, int64_t x, const float* weight, const float* bias,
    int64_t first_channel, int64_t channels, const Output& out, int64_t pixel_bytes) {
  Vec acc[kPixels][deep];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 8
    for (int d = 0; d < deep; ++d) acc[p][d] = load(bias + d * kLanes);
  }
  tile_along_channels<kPixels, deep>(taps, count, x, weight, acc);
  activate_tile<kPixels * deep>(&acc[0][0], out.activation);
  char* to = out.row + x * pixel_bytes + first_channel * bytes_of(out.type);
  if (out.type == Element::float32 && out.columns - x >= kPixels && channels >= deep * kLanes) {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 8
      for (int d = 0; d < deep; ++d) {
        store(reinterpret_cast<float*>(to + p * pixel_bytes) + d * kLanes, acc[p][d]);
      }
    }
    return;
  }
  Vec copy[kPixels][deep];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 8
    for (int d = 0; d < deep; ++d) copy[p][d] = acc[p][d];
  }
  for (int64_t p = 0; p < at_most(kPixels, out.columns - x); ++p) {
    for (int64_t d = 0; d < deep && d * kLanes < channels; ++d) {
      char* at = to + p * pixel_bytes + d * kLanes * bytes_of(out.type);
      store_as(at, out.type, copy[p][d], channels - d * kLanes);
    }
  }
}

void row_along_channels(
    const RawConv& c, const float* const* taps, const float* packed, const Output& out) {
  constexpr int kGroup = kDeep * kLanes;
  const int64_t count = 4 * c.kernel * c.kernel;
  const int64_t groups = (c.channels + kGroup - 1) / kGroup;
  const float* bias = packed + groups * count * kGroup;
  const int64_t pixel_bytes = c.out.column * bytes_of(out.type);
  for (int64_t x = 0; x < out.columns; x += kPixels) {
    for (int64_t g = 0; g < groups; ++g) {
      block_along_channels<kDeep>(
          taps, count, x, packed + g * count * kGroup, bias + g * kGroup, g * kGroup,
          c.channels - g * kGroup, out, pixel_bytes);
    }
  }
}

}  // namespace

// Whether the output is written along x (contiguous) or along the channels (channels_last).
static bool is_along_x(const RawConv& c) { return c.out.column == 1; }

// Floats of the packed weights, and of the workspace of one piece of `columns` columns.
void raw_conv_forward_sizes(const RawConv& c, int64_t columns, int64_t* packed, int64_t* workspace) {
  *packed = packed_floats(c, is_along_x(c) ? kBlock : kDeep * kLanes);
  // The pointers to the taps lie behind the strip.
  *workspace = round_up(strip_floats(c, columns), 16) + 2 * 4 * c.kernel * c.kernel;
}

void raw_conv_pack(const RawConv& c, float* packed) {
  pack_weights(c, is_along_x(c) ? kBlock : kDeep * kLanes, packed);
}

void raw_conv_forward(const RawConv& c, const float* packed, const Piece& piece, float* workspace) {
  Strip strip = make_strip(c, piece, workspace);
  const int64_t columns = piece.column_end - piece.column_begin;
  const float** taps = reinterpret_cast<const float**>(
      workspace + round_up(strip_floats(c, columns), 16));
  Output out;
  out.channel = c.out.channel * bytes_of(c.out.type);
  out.columns = columns;
  out.type = c.out.type;
  out.activation = c.activation;
  for (int64_t y = piece.row_begin; y < piece.row_end; ++y) {
    point_taps<false>(strip, y, taps);
    out.row = element_at(
        c.out, piece.sample * c.out.sample + y * c.out.row + piece.column_begin * c.out.column);
    if (is_along_x(c)) {
      row_along_x(c, taps, packed, out);
    } else {
      row_along_channels(c, taps, packed, out);
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
