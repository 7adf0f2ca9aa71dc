// What lies between the sums over a row's channels and its gradient; one row in each lane.
//
// A row's features are x, and x' = x - m with m its mean under layer norm, else 0. The normalised row
// is u = a x', with a = 1, 1 / |x| or 1 / sqrt(var + epsilon); v is the teacher's. With d = u - v, what
// the elements pull with is k: d for mse, d within [-beta, beta] for smooth L1. The gradient of a row
// is then p x'_s + q x'_t + r k + z, four numbers a row: `settle` makes them from the sums.
#pragma once

#include "common/distill_loss/vector.h"
#include "cpu/feature_loss/call.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

struct Sums {
  V ss, tt, st;   // of x'_s^2, x'_t^2 and x'_s x'_t
  V value;        // of d^2, or of smooth L1
  V pull, along;  // of k and of x'_s k
};

struct Scales {
  V a_s, a_t;
};

struct Gradient {
  V p, q, r, z;
};

INLINE V square_root(V x) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (V)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// A length, no shorter than the floor; NaN stays NaN.
INLINE V floored(V length) { return max(splat(kNormFloor), length); }

INLINE V scale_of(Normalise normalise, V square, float channels) {
  if (normalise == Normalise::l2) return 1.0f / floored(square_root(square));
  if (normalise == Normalise::layer) return 1.0f / square_root(square / channels + kLayerEpsilon);
  return splat(1.0f);
}

INLINE Scales scales_of(const FeatureCall& call, V ss, V tt) {
  const float channels = (float)call.channels;
  return {scale_of(call.normalise, ss, channels), scale_of(call.normalise, tt, channels)};
}

// The part of the elements' value that the sums leave out.
INLINE float value_share(const FeatureCall& call) {
  if (call.elements == Elements::none) return 0;
  const float share = call.element_share / (float)call.channels;
  return call.elements == Elements::smooth_l1 ? share / call.beta : share;
}

// The loss and the cosine of each row, without weights; and its gradient times `out`.
INLINE void settle(const FeatureCall& call, const Sums& sums, const Scales& scales, V out, V& loss,
                   V& cosine, Gradient& gradient) {
  const float channels = (float)call.channels, share = call.cosine_share;
  const float value = value_share(call);
  const V a_s = scales.a_s, a_t = scales.a_t;
  const V uu = a_s * a_s * sums.ss, vv = a_t * a_t * sums.tt, uv = a_s * a_t * sums.st;
  const V length = square_root(uu), inverse = 1.0f / (floored(length) * floored(square_root(vv)));
  const I short_row = length <= kNormFloor, zero_row = sums.ss == 0.0f;
  cosine = uv * inverse;
  loss = V{};
  // The gradient by u is of_u u + of_v v + of_k k.
  V of_u = V{}, of_v = V{}, of_k = V{};
  if (share != 0) {
    loss += share * (1.0f - cosine);
    of_u = short_row ? V{} : share * cosine / uu;
    of_v = zero_row ? V{} : -share * inverse;
  }
  if (value != 0) {
    loss += value * sums.value;
    of_k = splat(call.elements == Elements::mse ? 2 * value : value);
  }
  // By x: what normalising takes out of it is its part along u, and its mean.
  V along = V{}, mean = V{};
  if (call.normalise == Normalise::l2) {
    const V raw = square_root(sums.ss);
    along = of_u * uu + of_v * uv + of_k * a_s * sums.along;
    along = raw <= kNormFloor ? V{} : along;
    out = zero_row ? V{} : out * a_s;
  } else if (call.normalise == Normalise::layer) {
    along = (of_u * uu + of_v * uv + of_k * a_s * sums.along) / channels;
    mean = of_k * sums.pull / channels;
    out *= a_s;
  }
  gradient.p = out * a_s * (of_u - along);
  gradient.q = out * a_t * of_v;
  gradient.r = out * of_k;
  gradient.z = -out * mean;
}

// What an element pulls with, and its part of `Sums::value`.
template <Elements E>
INLINE V pull_of(V d, float beta) {
  if constexpr (E == Elements::smooth_l1) {
    return d > beta ? splat(beta) : (d < -beta ? splat(-beta) : d);
  }
  return d;
}
template <Elements E>
INLINE V value_of(V d, V k) {
  if constexpr (E == Elements::smooth_l1) return k * (d - 0.5f * k);
  return d * d;
}

// Calls `use.template operator()<Elements>()`.
template <class Use>
INLINE void with_elements(Elements elements, const Use& use) {
  switch (elements) {
    case Elements::none:
      return use.template operator()<Elements::none>();
    case Elements::mse:
      return use.template operator()<Elements::mse>();
    case Elements::smooth_l1:
      return use.template operator()<Elements::smooth_l1>();
  }
}

// Whether each row has scales of its own, which are known once all of it was read.
INLINE bool scaled(const FeatureCall& call) {
  return call.normalise == Normalise::l2 || call.normalise == Normalise::layer;
}

// Whether the elements alone make the gradient: what is 0 times an infinite feature must not enter.
INLINE bool elements_alone(const FeatureCall& call) {
  return call.cosine_share == 0 && !scaled(call);
}

INLINE bool counts(const FeatureCall& call, int64_t row) {
  return call.mask == nullptr || call.mask[row];
}
INLINE float weight_of(const FeatureCall& call, int64_t row) {
  return call.weight ? call.weight[row / call.rows_per_weight] : 1.0f;
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
