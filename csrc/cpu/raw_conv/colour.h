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

// Sums that the compiler can keep in registers.
struct Sums {
  Vec gain[4] = {}, mix[4][4] = {}, gamma = {};
};

// What the gradient of `left` periods and what was kept of them add; raw: their sites.
template <bool mixed, bool with_gamma>
ISP_INLINE void back_through_periods(
    const Camera& camera, const Vec (&raw)[4], int64_t left, const float* gradient, int64_t line,
    const float* kept, int64_t kept_line, Sums& sums) {
  Vec x[4], a[4], u[4], da[4] = {};
  for (int s = 0; s < 4; ++s) {
    x[s] = raw[s] - camera.black[s];
    u[s] = x[s] * camera.scale[s];
    a[s] = clamp(u[s], camera);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const int plane = plane_of<mixed>(camera, k);
    const Vec dz = load_first(gradient + plane * line, left);
    const Vec dv = dz * load_first(kept + plane * kept_line, left);
    if constexpr (with_gamma) {
      sums.gamma += dz * load_first(kept + (4 + plane) * kept_line, left);
    }
    if constexpr (mixed) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) {
        sums.mix[k][s] += dv * a[s];
        da[s] += camera.mix[k][s] * dv;
      }
    } else {
      da[k] = dv;
    }
  }
  for (int s = 0; s < 4; ++s) {
    sums.gain[s] += unless_different(u[s], a[s], da[s]) * x[s];
  }
}

static void add_to(const Sums& sums, Colour& total) {
  for (int s = 0; s < 4; ++s) {
    total.gain[s] += sums.gain[s] * total.unit[s];
    for (int k = 0; k < 4; ++k) total.mix[k][s] += sums.mix[k][s];
  }
  total.gamma += sums.gamma;
}

template <Element type, bool mixed, bool with_gamma>
static void back_through_sites(
    const void* row0, const void* row1, int64_t count, const Camera& camera, const float* gradient,
    const float* kept, int64_t line, Colour& total) {
  Periods<type> periods(row0, row1);
  Sums sums;
  Vec raw[4];
  const auto back = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    periods.load(i, left, raw);
    back_through_periods<mixed, with_gamma>(
        camera, raw, left, gradient + i, line, kept + i, line, sums);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) back(i, kLanes);
  if (i < count) back(i, count - i);
  add_to(sums, total);
}

// Of rows in two phases, as convert_sites_in_two wrote them.
template <Element type, bool mixed, bool with_gamma>
static void back_through_sites_in_two(
    const void* row0, const void* row1, int64_t count, const Camera& camera, InTwo gradient,
    InTwo kept, Colour& total) {
  Periods<type> periods(row0, row1);
  Sums sums;
  Vec raw[2][4];
  const auto back = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const int64_t at = i / 2;
    periods.load_in_two(i, left, raw);
    back_through_periods<mixed, with_gamma>(
        camera, raw[0], (left + 1) / 2, gradient.first + at, gradient.line, kept.first + at,
        kept.line, sums);
    back_through_periods<mixed, with_gamma>(
        camera, raw[1], left / 2, gradient.second + at, gradient.line, kept.second + at, kept.line,
        sums);
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) back(i, 2 * kLanes);
  if (i < count) back(i, count - i);
  add_to(sums, total);
}

// out[s * i] = in[i], for i < count.
ISP_INLINE void put_every(const float* in, int64_t s, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[s * i] = in[i];
}

// Packed columns [begin, end) of the strip's row `row_index`, from the mosaic rows that row0 and row1 are;
// `row` is its gradient, [4][phases][row_line].
template <Element type, bool mixed, bool with_gamma>
static void back_through_row(
    const Strip& strip, int64_t row_index, int64_t begin, int64_t end, const void* row0,
    const void* row1, float* row, int64_t row_line, Colour& colour) {
  float* kept = kept_row(strip, row_index);
  if (in_two_phases(strip)) {
    const int64_t at = begin - strip.first;
    return back_through_sites_in_two<type, mixed, with_gamma>(
        row0, row1, end - begin, strip.camera, in_two(row, at, row_line),
        in_two(kept, at, strip.length), colour);
  }
  // The phases back into columns, in the buffer that rows are converted through.
  for (int64_t k = 0; k < 4; ++k) {
    float* out = strip.packed + k * strip.line;
    memset(out, 0, 4 * (end - begin));
    for (int64_t phase = 0; phase < strip.phases; ++phase) {
      int64_t from, to;
      phase_range(strip, phase, begin, end, &from, &to);
      if (from >= to) continue;
      put_every(row + (k * strip.phases + phase) * row_line + from, strip.conv->stride, to - from,
                out + strip.first + phase + strip.conv->stride * from - begin);
    }
  }
  back_through_sites<type, mixed, with_gamma>(
      row0, row1, end - begin, strip.camera, strip.packed, kept, strip.line, colour);
}

// All of a row of the strip that its gradient reaches: `length` elements of each phase.
static void back_through_colour(
    const Strip& strip, int64_t row_index, float* row, int64_t row_line, int64_t length,
    Colour& colour) {
  const RawConv& c = *strip.conv;
  const int64_t begin = at_least(strip.first, 0);
  const int64_t end = at_most(c.width, strip.first + c.stride * (length - 1) + strip.phases);
  if (begin >= end) return;
  const void *row0, *row1;
  const Element type = mosaic_rows(strip, row_index, begin, end - begin, &row0, &row1);
  with_type(type, [&]<Element of_type>() {
    with_curve(c, [&]<bool mixed, Curve curve>() {
      back_through_row<of_type, mixed, curve == Curve::gamma>(
          strip, row_index, begin, end, row0, row1, row, row_line, colour);
    });
  });
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
