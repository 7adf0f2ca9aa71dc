// The demosaicing filters on rows whose even and odd columns lie apart (see rows.h).
//
// Every row of a Bayer mosaic alternates between green and one colour (red or blue); here `x` is the
// plane of that colour's columns, `y` that of the green ones. The other colour, in the rows above and
// below, stands in the green columns. All filters are symmetric vertically, so they read the row
// itself, the sum of the two rows next to it (x1, y1), and of the two beyond (x2, y2). These three are
// all that the vertical direction contributes, which is what lets folded_kernel.cpp resize
// vertically before it demosaics.
#pragma once

#include "cpu/render/call.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {


// The rows as the sensor has them.
struct SensorRows {
  const float *x, *y;
  const float *x_above, *x_below, *y_above, *y_below;      // one row away
  const float *x_above2, *x_below2, *y_above2, *y_below2;  // two rows away

  ISP_MEMBER Vec x0(int64_t i) const { return load(x + i); }
  ISP_MEMBER Vec y0(int64_t i) const { return load(y + i); }
  ISP_MEMBER Vec x1(int64_t i) const { return load(x_above + i) + load(x_below + i); }
  ISP_MEMBER Vec y1(int64_t i) const { return load(y_above + i) + load(y_below + i); }
  ISP_MEMBER Vec x2(int64_t i) const { return load(x_above2 + i) + load(x_below2 + i); }
  ISP_MEMBER Vec y2(int64_t i) const { return load(y_above2 + i) + load(y_below2 + i); }
};

// Sums over sensor rows that were made already.
struct ReducedRows {
  const float *x, *y, *x_next, *y_next, *x_beyond, *y_beyond;

  ISP_MEMBER Vec x0(int64_t i) const { return load(x + i); }
  ISP_MEMBER Vec y0(int64_t i) const { return load(y + i); }
  ISP_MEMBER Vec x1(int64_t i) const { return load(x_next + i); }
  ISP_MEMBER Vec y1(int64_t i) const { return load(y_next + i); }
  ISP_MEMBER Vec x2(int64_t i) const { return load(x_beyond + i); }
  ISP_MEMBER Vec y2(int64_t i) const { return load(y_beyond + i); }
};

// kLanes pairs from pair i on: the row's own colour, green, and the other colour, in the even and in
// the odd columns. `colour_even`: the row's own colour stands in the even columns.
template <Demosaic method, bool colour_even, class Rows>
ISP_INLINE void demosaic_pairs(const Rows& rows, int64_t i, Vec* in_even, Vec* in_odd) {
  // The greens beside colour site i, and the colours beside green site i, are at i + these.
  constexpr int64_t green_left = colour_even ? -1 : 0, green_right = green_left + 1;
  constexpr int64_t colour_left = colour_even ? 0 : -1, colour_right = colour_left + 1;
  Vec* at_colour = colour_even ? in_even : in_odd;
  Vec* at_green = colour_even ? in_odd : in_even;

  const Vec x = rows.x0(i), y = rows.y0(i);
  if constexpr (method == Demosaic::none) {
    for (int c = 0; c < 3; ++c) at_colour[c] = x, at_green[c] = y;
    return;
  }
  const Vec greens = rows.y0(i + green_left) + rows.y0(i + green_right) + rows.x1(i);
  const Vec diagonal = rows.y1(i + green_left) + rows.y1(i + green_right);
  const Vec beside = rows.x0(i + colour_left) + rows.x0(i + colour_right), upright = rows.y1(i);
  at_colour[0] = x;
  at_green[1] = y;
  if constexpr (method == Demosaic::bilinear) {
    at_colour[1] = 0.25f * greens;
    at_colour[2] = 0.25f * diagonal;
    at_green[0] = 0.5f * beside;
    at_green[2] = 0.5f * upright;
  } else {
    // Malvar, He, Cutler 2004, figure 2, over 8.
    const Vec around = rows.x2(i) + rows.x0(i - 1) + rows.x0(i + 1);
    at_colour[1] = 0.5f * x + 0.25f * greens - 0.125f * around;
    at_colour[2] = 0.75f * x + 0.25f * diagonal - 0.1875f * around;
    const Vec along = rows.y0(i - 1) + rows.y0(i + 1), across = rows.y2(i);
    const Vec corners = rows.x1(i + colour_left) + rows.x1(i + colour_right);
    const Vec own = 0.625f * y - 0.125f * corners;
    at_green[0] = own + 0.5f * beside - 0.125f * along + 0.0625f * across;
    at_green[2] = own + 0.5f * upright - 0.125f * across + 0.0625f * along;
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
