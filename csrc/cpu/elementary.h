// Elementary functions whose results are the same bits on every backend: the operations of
// isp_distill/ops/elementary.py, in the same order. See there for why, and for the errors.
//
// Only for files that are compiled without fused multiply-adds, *_exact_kernel.cpp. exp2 and log2 of
// simd.h are part of it.
#pragma once

#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// The y in [0, 1] with 3y^2 - 2y^3 = x, for x in [0, 1].
ISP_INLINE Vec inverse_smoothstep(Vec x) {
  constexpr float kInverse[] = {0.577361643f,  0.110519752f, 0.0640145764f,
                                -0.0585274249f, 0.46354422f,  -1.23047125f,
                                2.08728766f,   -1.8798368f,  0.754534125f};
  const auto upper = x > 0.5f;
  const Vec u = square_root(upper ? 1.0f - x : x);
  const Vec y = u * polynomial(u, kInverse);
  return upper ? 1.0f - y : y;
}

// Of `angle` 2^-24ths of a turn, in [0, 2^24).
ISP_INLINE void sine_cosine(Int angle, Vec* sine, Vec* cosine) {
  constexpr float kSine[] = {1.57079625f, -0.645962954f, 0.0796759054f, -0.00459228922f};
  constexpr float kCosine[] = {1.0f, -1.23370051f, 0.253669202f, -0.0208600722f, 0.000903631677f};
  const Int quarter = (angle + (1 << 21)) >> 22;
  const Vec r = __builtin_convertvector(angle - (quarter << 22), Vec) * 0x1p-22f;
  const Vec square = r * r;
  const Vec s = r * polynomial(square, kSine), c = polynomial(square, kCosine);
  const auto odd = (quarter & 1) != 0;
  const Vec one = odd ? c : s, other = odd ? s : c;
  // Bit 1 of the quarter, moved to the sign.
  *sine = (Vec)((Int)one ^ ((quarter & 2) << 30));
  *cosine = (Vec)((Int)other ^ (((quarter + 1) & 2) << 30));
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
