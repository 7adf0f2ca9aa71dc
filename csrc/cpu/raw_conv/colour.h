// The way back through curve, mix and clamp: from the gradient of a packed row after the curve to what
// it adds to the gradients of gain, mix and gamma.
//
// Forward, per period: u = (x - black) * scale, a = clamp(u), v = mix a, b = clamp(v), z = curve(b).
// Backward: dv = dz * curve'(b) where v was not clamped; mix += dv a^T; du = mix^T dv where u was not
// clamped; gain += du * (x - black) / (white - black); gamma += dz * z * log(b). What depends on b was
// kept when the row was converted: the strip's ring holds it for as long as the row itself.
#pragma once

#include "cpu/raw_conv/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// Sums over one piece, one per lane.
struct Colour {
  Vec unit[4];       // 1 / (white - black), by site
  Vec gain[4];       // by site
  Vec mix[4][4];     // [plane][site]
  Vec gamma;
};

static Colour make_colour(const Strip& strip) {
  Colour colour;
  memset(&colour, 0, sizeof(colour));
  for (int site = 0; site < 4; ++site) {
    colour.unit[site] =
        broadcast(strip.conv->unit[4 * strip.sample + strip.camera.plane[site]]);
  }
  return colour;
}

template <Element type, bool mixed, bool with_gamma>
static void back_through_sites(
    const void* row0, const void* row1, int64_t count, const Camera& camera, const float* gradient,
    const float* kept, int64_t line, Colour& total) {
  constexpr int kBytes = type == Element::float32 ? 4 : 2;
  alignas(64) char tail[2][2 * kLanes * 4];
  // Sums that the compiler can keep in registers.
  Vec gain[4] = {}, mix[4][4] = {}, gamma = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec x[4], a[4], u[4], da[4] = {};
    if (count - i >= kLanes) {
      load_sites<type>(row0, row1, i, x);
    } else {
      // The gradient is zero there, so these sites add nothing.
      memset(tail, 0, sizeof(tail));
      memcpy(tail[0], static_cast<const char*>(row0) + 2 * kBytes * i, 2 * kBytes * (count - i));
      memcpy(tail[1], static_cast<const char*>(row1) + 2 * kBytes * i, 2 * kBytes * (count - i));
      load_sites<type>(tail[0], tail[1], 0, x);
    }
    for (int s = 0; s < 4; ++s) {
      x[s] -= camera.black[s];
      u[s] = x[s] * camera.scale[s];
      a[s] = clamp(u[s], camera);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const int plane = mixed ? k : camera.plane[k];
      const Vec dz = load(gradient + plane * line + i);
      const Vec dv = dz * load(kept + plane * line + i);
      if constexpr (with_gamma) gamma += dz * load(kept + (4 + plane) * line + i);
      if constexpr (mixed) {
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) {
          mix[k][s] += dv * a[s];
          da[s] += camera.mix[k][s] * dv;
        }
      } else {
        da[k] = dv;
      }
    }
    for (int s = 0; s < 4; ++s) {
      gain[s] += unless_different(u[s], a[s], da[s]) * x[s];
    }
  }
  for (int s = 0; s < 4; ++s) {
    total.gain[s] += gain[s] * total.unit[s];
    for (int k = 0; k < 4; ++k) total.mix[k][s] += mix[k][s];
  }
  total.gamma += gamma;
}

template <Element type>
ISP_INLINE void back_with_mix(
    const Strip& strip, const void* row0, const void* row1, int64_t n, const float* kept,
    Colour& colour) {
  const bool gamma = strip.conv->curve == Curve::gamma;
  const auto back = strip.conv->mix
                        ? (gamma ? back_through_sites<type, true, true>
                                 : back_through_sites<type, true, false>)
                        : (gamma ? back_through_sites<type, false, true>
                                 : back_through_sites<type, false, false>);
  back(row0, row1, n, strip.camera, strip.packed, kept, strip.line, colour);
}

// out[s * i] = in[i], for i < count.
ISP_INLINE void put_every(const float* in, int64_t s, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[s * i] = in[i];
}

// `row` is [4][phases][row_line], the gradient of the strip's row `row_index`, of which `length`
// elements are used.
static void back_through_colour(
    const Strip& strip, int64_t row_index, const float* row, int64_t row_line, int64_t length,
    Colour& colour) {
  const RawConv& c = *strip.conv;
  const int64_t begin = at_least(strip.first, 0);
  const int64_t end = at_most(c.width, strip.first + c.stride * (length - 1) + strip.phases);
  if (begin >= end) return;
  // The phases back into columns, in the buffer that rows are converted through.
  for (int64_t k = 0; k < 4; ++k) {
    float* out = strip.packed + k * strip.line;
    const float* in = row + k * strip.phases * row_line;
    int64_t from, to;
    if (c.stride == 2 && strip.phases == 2) {
      // From the first element whose two columns both lie inside; the odd one before it alone.
      const int64_t j = begin - strip.first, n = (end - begin + 1) / 2;
      const float* first = in + j / 2;
      const float* second = in + row_line + j / 2;
      if (j % 2) {
        first = in + row_line + j / 2;
        second = in + j / 2 + 1;
      }
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) {
        const Vec p = load(first + i), q = load(second + i);
        store(out + 2 * i, interleave_low(p, q));
        store(out + 2 * i + kLanes, interleave_high(p, q));
      }
      for (; i < n; ++i) {
        out[2 * i] = first[i];
        out[2 * i + 1] = second[i];
      }
    } else {
      memset(out, 0, 4 * (end - begin));
      for (int64_t phase = 0; phase < strip.phases; ++phase) {
        phase_range(strip, phase, begin, end, &from, &to);
        if (from >= to) continue;
        put_every(in + phase * row_line + from, c.stride, to - from,
                  out + strip.first + phase + c.stride * from - begin);
      }
    }
    memset(out + (end - begin), 0, 4 * kLanes);
  }
  const void *row0, *row1;
  const Element type = mosaic_rows(strip, row_index, begin, end - begin, &row0, &row1);
  const int64_t n = end - begin;
  const float* kept = kept_row(strip, row_index);
  if (type == Element::uint16) {
    back_with_mix<Element::uint16>(strip, row0, row1, n, kept, colour);
  } else if (type == Element::int16) {
    back_with_mix<Element::int16>(strip, row0, row1, n, kept, colour);
  } else {
    back_with_mix<Element::float32>(strip, row0, row1, n, kept, colour);
  }
}

// Adds the piece's sums to gain [4], mix [4, 4], gamma, planes in the order R, Gr, Gb, B.
static void hand_out_colour(const Colour& colour, const Strip& strip, float* out) {
  for (int s = 0; s < 4; ++s) {
    const int plane = strip.camera.plane[s];
    out[plane] += sum(colour.gain[s]);
    for (int k = 0; k < 4; ++k) out[4 + 4 * k + plane] += sum(colour.mix[k][s]);
  }
  out[20] += 0.693147181f * sum(colour.gamma);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
