// raw_conv, backward: what one piece of the output adds to the gradients. The normalised input is
// computed again from the mosaic, one strip at a time, and never stored.
//
// For each output row:
//   1. grad_out times the activation's derivative becomes a row of floats per channel, in the cache.
//   2. weight: weight[c, t] += sum over x of gradient[c, x] * taps[t][x], in tiles of kGradChannels x
//      kGradTaps vectors; the lanes are added up once, at the end of the piece.
//   3. only where gain, mix or gamma ask: the gradient of the normalised rows, a convolution of the
//      gradient's rows with four output channels (the planes), scattered to the packed rows that the
//      output row read. A packed row that no later output row reads goes back through curve, mix and
//      clamp (colour.h). That chain is linear in the row's gradient, so two pieces may each
//      hand back their share of a row between them.
//
// Predicted floor: 4 * kernel^2 multiply-adds an output for each of 2 and 3.
#include "cpu/raw_conv/colour.h"
#include "cpu/raw_conv/tile.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {
namespace {

constexpr int kGradChannels = 4;
constexpr int kGradTaps = kRegisters == 32 ? 6 : 3;
constexpr int kGradTile = kGradChannels * kGradTaps;

// Where the workspace of a piece keeps what; counts in floats, all of them multiples of a vector.
struct Layout {
  int64_t steps;          // taps of a phase beyond its first, at most: (kernel - 1) / stride
  int64_t margin;         // zeros before a gradient's row, for the taps that reach back
  int64_t line;           // floats of a gradient's row, margins included
  int64_t shift_line;     // floats of a row of the input's gradient, per plane and phase
  int64_t phases, taps, tap_tiles, channel_tiles;
  int64_t strip, gradient, scratch, sums, bias_sums, input, kept, pointers, total;
};

Layout layout_of(const RawConv& c, int64_t columns) {
  Layout at;
  at.steps = (c.kernel - 1) / c.stride;
  at.margin = round_up(at.steps, kLanes);
  at.shift_line = round_up(columns + at.steps, kLanes);
  at.line = odd_lines(at.margin + at.shift_line + kLanes);
  at.phases = at_most(c.kernel, c.stride);
  at.taps = 4 * c.kernel * c.kernel;
  at.tap_tiles = (at.taps + kGradTaps - 1) / kGradTaps;
  at.channel_tiles = (c.channels + kGradChannels - 1) / kGradChannels;
  int64_t next = round_up(strip_floats(c, columns), 16);
  auto place = [&next](int64_t count) {
    const int64_t here = next;
    next += round_up(count, 16);
    return here;
  };
  at.strip = 0;
  at.gradient = place(c.channels * at.line);
  at.scratch = place(2 * c.channels * at.line);
  at.sums = place(at.channel_tiles * at.tap_tiles * kGradTile * kLanes);
  at.bias_sums = place(c.channels * kLanes);
  at.input = place(c.kernel * 4 * at.phases * at.shift_line);
  at.kept = place(kept_floats(c, columns));
  at.pointers = place(2 * (at.taps + kGradTaps + 2 * c.channels * c.kernel));
  at.total = next;
  return at;
}

// ---------------------------------------------------------------- 1. the gradient's rows

// One row of an image as [channel][x], wherever it is: the image itself, or a copy in `scratch`.
struct Row {
  const char* data;
  int64_t channel;  // bytes
  Element type;
};

// kLanes vectors to their transposed: a perfect shuffle, log2(kLanes) times.
ISP_INLINE void transpose(Vec* v) {
  Vec w[kLanes];
  for (int n = 1; n < kLanes; n *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      w[2 * i] = interleave_low(v[i], v[i + kLanes / 2]);
      w[2 * i + 1] = interleave_high(v[i], v[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = w[i];
  }
}

Row row_of(const Image& image, int64_t channels, int64_t offset, int64_t columns, int64_t line,
           float* scratch) {
  const char* data = element_at(image, offset);
  const int64_t bytes = bytes_of(image.type);
  if (image.column == 1) return {data, image.channel * bytes, image.type};
  if (image.channel == 1) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t here = at_most(kLanes, channels - c);
      for (int64_t x = 0; x < columns; x += kLanes) {
        Vec v[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          v[i] = x + i < columns
                     ? load_as(data + ((x + i) * image.column + c) * bytes, image.type, here)
                     : Vec{};
        }
        transpose(v);
        for (int64_t i = 0; i < here; ++i) store(scratch + (c + i) * line + x, v[i]);
      }
    }
  } else {  // any other strides, such as the zeros of an expanded tensor
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t x = 0; x < columns; ++x) {
        scratch[c * line + x] =
            load_one(data + (c * image.channel + x * image.column) * bytes, image.type);
      }
    }
  }
  return {reinterpret_cast<const char*>(scratch), 4 * line, Element::float32};
}

// The activation's derivative from its result (relu, relu6) or from what went into it; for relu and
// relu6 both tell the same. NaN was not cut off.
ISP_INLINE Vec times_derivative(Vec g, Vec y, Activation activation) {
  switch (activation) {
    case Activation::none:
      return g;
    case Activation::relu:
      return y <= 0.0f ? Vec{} : g;
    case Activation::relu6:
      return (y <= 0.0f) | (y >= 6.0f) ? Vec{} : g;
    case Activation::silu: {
      const Vec s = 1.0f / (1.0f + exp(-y));
      return g * s * (1.0f + y * (1.0f - s));
    }
    case Activation::gelu:
      return g * (normal_cdf(y) + 0.398942280f * y * exp(-0.5f * y * y));
  }
  return g;
}

template <Activation activation>
void fill_gradient(
    int64_t channels, int64_t columns, const Row& grad, const Row& result, float* out, int64_t line,
    float* bias) {
  const int64_t bytes = bytes_of(grad.type), result_bytes = bytes_of(result.type);
  for (int64_t c = 0; c < channels; ++c, out += line) {
    Vec total = {};
    for (int64_t x = 0; x < columns; x += kLanes) {
      Vec g = load_as(grad.data + c * grad.channel + x * bytes, grad.type, columns - x);
      if constexpr (activation != Activation::none) {
        const Vec y = load_as(
            result.data + c * result.channel + x * result_bytes, result.type, columns - x);
        g = times_derivative(g, y, activation);
      }
      store(out + x, g);
      total += g;
    }
    store(bias + c * kLanes, load(bias + c * kLanes) + total);
  }
}

// ------------------------------------------------------------------- 2. the weight's gradient

// `ahead`: the row that step 1 reads next, which is fetched meanwhile: a quarter of that step's time.
void add_to_weight(
    const float* const* taps, const float* gradient, int64_t line, int64_t channels, int64_t columns,
    const Layout& at, const Row& ahead, float* sums) {
  // In the last vector a tap also reads columns that belong to no output: there the gradient is zero, but
  // zero times NaN is NaN.
  const int64_t whole = columns / kLanes * kLanes;
  Int there;
  for (int i = 0; i < kLanes; ++i) there[i] = i < columns - whole ? -1 : 0;
  for (int64_t ct = 0; ct < at.channel_tiles; ++ct) {
    const float* g[kGradChannels];
    // Channels that are not there repeat the last one; their sums are not read.
    for (int i = 0; i < kGradChannels; ++i) {
      g[i] = gradient + at_most(ct * kGradChannels + i, channels - 1) * line;
    }
    for (int64_t tt = 0; tt < at.tap_tiles; ++tt, sums += kGradTile * kLanes) {
      const float* const* tap = taps + tt * kGradTaps;
      Vec acc[kGradChannels][kGradTaps];
#pragma GCC unroll 8
      for (int i = 0; i < kGradChannels; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < kGradTaps; ++t) acc[i][t] = load(sums + (i * kGradTaps + t) * kLanes);
      }
      // One channel of the tile in each pass; in the passes beyond, what is in the cache already.
      const int64_t next = ct * kGradChannels + tt;
      const bool fetches = ahead.data && tt < kGradChannels && next < channels;
      const char* fetched = fetches ? ahead.data + next * ahead.channel
                                    : reinterpret_cast<const char*>(g[0]);
      const int64_t bytes = fetches ? bytes_of(ahead.type) : 4;
      for (int64_t x = 0; x < whole; x += kLanes) {
        __builtin_prefetch(fetched + x * bytes, 0, 2);
        Vec gx[kGradChannels];
#pragma GCC unroll 8
        for (int i = 0; i < kGradChannels; ++i) gx[i] = load(g[i] + x);
#pragma GCC unroll 8
        for (int t = 0; t < kGradTaps; ++t) {
          const Vec v = load(tap[t] + x);
#pragma GCC unroll 8
          for (int i = 0; i < kGradChannels; ++i) acc[i][t] += gx[i] * v;
        }
      }
      if (whole < columns) {
        Vec gx[kGradChannels];
#pragma GCC unroll 8
        for (int i = 0; i < kGradChannels; ++i) gx[i] = load(g[i] + whole);
#pragma GCC unroll 8
        for (int t = 0; t < kGradTaps; ++t) {
          const Vec v = (Vec)((Int)load(tap[t] + whole) & there);
#pragma GCC unroll 8
          for (int i = 0; i < kGradChannels; ++i) acc[i][t] += gx[i] * v;
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kGradChannels; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < kGradTaps; ++t) store(sums + (i * kGradTaps + t) * kLanes, acc[i][t]);
      }
    }
  }
}

void hand_out_weight(const RawConv& c, const Layout& at, const float* sums, float* weight) {
  for (int64_t ct = 0; ct < at.channel_tiles; ++ct) {
    for (int64_t tt = 0; tt < at.tap_tiles; ++tt) {
      for (int i = 0; i < kGradChannels; ++i) {
        for (int t = 0; t < kGradTaps; ++t, sums += kLanes) {
          const int64_t channel = ct * kGradChannels + i, tap = tt * kGradTaps + t;
          if (channel < c.channels && tap < at.taps) weight[channel * at.taps + tap] += sum(load(sums));
        }
      }
    }
  }
}

// ------------------------------------------------------- 3. the gradient of the normalised rows

template <int wide>
void scatter_tile(
    const float* const* taps, int64_t count, int64_t x, const float* weight, float* out,
    int64_t plane) {
  Vec acc[kPlanes][wide];
#pragma GCC unroll 8
  for (int k = 0; k < kPlanes; ++k) {
#pragma GCC unroll 8
    for (int b = 0; b < wide; ++b) acc[k][b] = load(out + k * plane + x + b * kLanes);
  }
  tile_along_x<kPlanes, wide>(taps, count, x, weight, acc);
#pragma GCC unroll 8
  for (int k = 0; k < kPlanes; ++k) {
#pragma GCC unroll 8
    for (int b = 0; b < wide; ++b) store(out + k * plane + x + b * kLanes, acc[k][b]);
  }
}

// Adds to out[plane][x], x over `vectors` vectors, what the taps (channel, step) hold.
void scatter(
    const float* const* taps, int64_t count, int64_t vectors, const float* weight, float* out,
    int64_t plane) {
  const int64_t tiles = (vectors + kPlanesWide - 1) / kPlanesWide;
  int64_t x = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t wide = vectors * (tile + 1) / tiles - vectors * tile / tiles;
    switch (wide) {
      case 6:
        scatter_tile<6>(taps, count, x, weight, out, plane);
        break;
      case 5:
        scatter_tile<5>(taps, count, x, weight, out, plane);
        break;
      case 4:
        scatter_tile<4>(taps, count, x, weight, out, plane);
        break;
      case 3:
        scatter_tile<3>(taps, count, x, weight, out, plane);
        break;
      case 2:
        scatter_tile<2>(taps, count, x, weight, out, plane);
        break;
      default:
        scatter_tile<1>(taps, count, x, weight, out, plane);
    }
    x += wide * kLanes;
  }
}

}  // namespace

void raw_conv_backward_sizes(const RawConv& c, int64_t columns, int64_t* packed, int64_t* workspace) {
  *packed = packed_floats(c, kBlock) + c.channels * 4 * c.kernel * c.kernel;
  *workspace = layout_of(c, columns).total;
}

// The forward pass's weights, then [kernel row][phase][channel, step][plane] for the scattering; a step
// of a phase is the kernel column phase + stride * step.
void raw_conv_backward_pack(const RawConv& c, float* packed) {
  pack_weights(c, kBlock, packed);
  packed += packed_floats(c, kBlock);
  const int64_t area = c.kernel * c.kernel;
  for (int64_t y = 0; y < c.kernel; ++y) {
    for (int64_t phase = 0; phase < at_most(c.kernel, c.stride); ++phase) {
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        for (int64_t x = phase; x < c.kernel; x += c.stride) {
          for (int64_t k = 0; k < 4; ++k) {
            *packed++ = c.weight[(channel * 4 + k) * area + y * c.kernel + x];
          }
        }
      }
    }
  }
}

void raw_conv_backward(
    const RawConv& c, const RawConvGradients& gradients, const float* packed, const Piece& piece,
    float* workspace) {
  const int64_t columns = piece.column_end - piece.column_begin;
  const Layout at = layout_of(c, columns);
  Strip strip = make_strip(c, piece, workspace);
  float* gradient = workspace + at.gradient;
  float* scratch = workspace + at.scratch;
  float* sums = workspace + at.sums;
  float* bias_sums = workspace + at.bias_sums;
  float* input = workspace + at.input;
  const float** taps = reinterpret_cast<const float**>(workspace + at.pointers);
  const float** scatter_taps = taps + at.taps + kGradTaps;
  // The margins of the gradient's rows, and all sums, start at zero.
  memset(gradient, 0, 4 * (at.kept - at.gradient));
  if (gradients.colour) strip.kept = workspace + at.kept;
  const float* transposed = packed + packed_floats(c, kBlock);
  const bool recompute = c.activation != Activation::none && c.out.data == nullptr;

  const int64_t input_row = 4 * at.phases * at.shift_line;
  int64_t phase_count[32];  // as many as the largest kernel has columns
  if (gradients.colour) {
    const float** p = scatter_taps;
    for (int64_t phase = 0; phase < at.phases; ++phase) {
      const float** first = p;
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        for (int64_t step = 0; phase + c.stride * step < c.kernel; ++step) {
          *p++ = gradient + channel * at.line + at.margin - step;
        }
      }
      phase_count[phase] = p - first;
    }
  }
  Colour colour = make_colour(strip);
  int64_t retired = at_least(piece.row_begin * c.stride - c.top, 0);

  for (int64_t y = piece.row_begin; y < piece.row_end; ++y) {
    if (gradients.colour) {
      point_taps<true>(strip, y, taps);
    } else {
      point_taps<false>(strip, y, taps);
    }
    for (int t = 0; t < kGradTaps; ++t) taps[at.taps + t] = taps[at.taps - 1];

    const int64_t x0 = piece.column_begin;
    auto offset = [&](const Image& image) {
      return piece.sample * image.sample + y * image.row + x0 * image.column;
    };
    const Image& g = gradients.grad_out;
    const Row grad = row_of(g, c.channels, offset(g), columns, at.line, scratch);
    Row result = {nullptr, 0, Element::float32};
    float* second = scratch + c.channels * at.line;
    if (recompute) {
      const Output out = {reinterpret_cast<char*>(second), 4 * at.line, columns, Element::float32,
                          Activation::none};
      row_along_x(c, taps, packed, out);
      result = {reinterpret_cast<const char*>(second), 4 * at.line, Element::float32};
    } else if (c.activation != Activation::none) {
      result = row_of(c.out, c.channels, offset(c.out), columns, at.line, second);
    }
    float* rows = gradient + at.margin;
    switch (c.activation) {
      case Activation::none:
        fill_gradient<Activation::none>(c.channels, columns, grad, result, rows, at.line, bias_sums);
        break;
      case Activation::relu:
        fill_gradient<Activation::relu>(c.channels, columns, grad, result, rows, at.line, bias_sums);
        break;
      case Activation::relu6:
        fill_gradient<Activation::relu6>(c.channels, columns, grad, result, rows, at.line, bias_sums);
        break;
      case Activation::silu:
        fill_gradient<Activation::silu>(c.channels, columns, grad, result, rows, at.line, bias_sums);
        break;
      case Activation::gelu:
        fill_gradient<Activation::gelu>(c.channels, columns, grad, result, rows, at.line, bias_sums);
        break;
    }

    if (gradients.weight) {
      const bool another = g.column == 1 && y + 1 < piece.row_end;
      const Row ahead = {another ? element_at(g, offset(g) + g.row) : nullptr, grad.channel, g.type};
      add_to_weight(taps, rows, at.line, c.channels, columns, at, ahead, sums);
    }
    if (!gradients.colour) continue;
    const float* weight = transposed;
    for (int64_t ky = 0; ky < c.kernel; ++ky) {
      const int64_t row = y * c.stride - c.top + ky;
      const bool inside = row >= 0 && row < c.height;
      const float** p = scatter_taps;
      for (int64_t phase = 0; phase < at.phases; ++phase) {
        const int64_t count = phase_count[phase];
        if (inside) {
          float* out = input + row % c.kernel * input_row + phase * at.shift_line;
          scatter(p, count, at.shift_line / kLanes, weight, out, at.phases * at.shift_line);
        }
        p += count;
        weight += 4 * count;
      }
    }
    // Rows that the next output row does not read are complete; after the last one, all of them.
    const int64_t below = y + 1 < piece.row_end ? (y + 1) * c.stride - c.top : y * c.stride - c.top + c.kernel;
    for (; retired < at_most(below, c.height); ++retired) {
      if (retired < y * c.stride - c.top) continue;  // between two strides: no tap reads it
      if (retired >= y * c.stride - c.top + c.kernel) continue;
      float* row = input + retired % c.kernel * input_row;
      back_through_colour(strip, retired, row, at.shift_line, columns + at.steps, colour);
      memset(row, 0, 4 * input_row);
    }
  }
  if (gradients.weight) hand_out_weight(c, at, sums, gradients.weight);
  if (gradients.bias) {
    for (int64_t i = 0; i < c.channels; ++i) gradients.bias[i] += sum(load(bias_sums + i * kLanes));
  }
  if (gradients.colour) hand_out_colour(colour, strip, gradients.colour);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
