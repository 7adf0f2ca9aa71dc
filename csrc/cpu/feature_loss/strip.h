// A strip: some positions side by side with all their channels, a position in each lane, in buffers that
// stay in the second-level cache. Sums over channels are then sums of vectors.
#pragma once

#include "cpu/feature_loss/settle.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// `depth` channels by `width` positions; elements from one channel to the next are `pitch` apart, an
// odd number of cache lines, for the sake of the caches' sets.
struct Strip {
  float *s, *t;
  int64_t depth, width, pitch;
  // Arrays of `width`: the sums of `Sums` that the first pass makes, weights, and what
  // `settle` leaves.
  float *ss, *tt, *st, *value, *out, *a_s, *a_t, *p, *q, *r, *z;
  int32_t* inside;  // -1 or 0
};

INLINE Strip make_strip(float* memory, int64_t depth, int64_t width) {
  Strip strip{};
  strip.depth = depth, strip.width = width, strip.pitch = width + 16;
  float** arrays[] = {&strip.ss, &strip.tt, &strip.st,
                      &strip.value, &strip.out, &strip.a_s, &strip.a_t, &strip.p,
                      &strip.q, &strip.r, &strip.z};
  for (float** array : arrays) *array = memory, memory += width;
  strip.inside = (int32_t*)memory, memory += width;
  strip.s = memory, memory += depth * strip.pitch;
  strip.t = memory;
  return strip;
}

// Layer norm, of the sums of the features: less their means, and the sums of products about them.
static void centre(const Strip& strip) {
  for (int64_t v = 0; v < strip.width; v += W) {
    const V m_s = load(strip.ss + v) / (float)strip.depth;
    const V m_t = load(strip.tt + v) / (float)strip.depth;
    V ss = V{}, tt = V{}, st = V{};
    for (int64_t d = 0; d < strip.depth; ++d) {
      float *ps = strip.s + d * strip.pitch + v, *pt = strip.t + d * strip.pitch + v;
      const V x = load(ps) - m_s, y = load(pt) - m_t;
      store(ps, x), store(pt, y);
      ss += x * x, tt += y * y, st += x * y;
    }
    store(strip.ss + v, ss), store(strip.tt + v, tt), store(strip.st + v, st);
  }
}

// All lanes' losses (weighted, in `value`), their cosines (in `ss`) and gradients.
template <Elements E>
static void settle_strip(const Strip& strip, const FeatureCall& call) {
  for (int64_t v = 0; v < strip.width; v += W) {
    Sums sums = {load(strip.ss + v), load(strip.tt + v), load(strip.st + v), V{}, V{}, V{}};
    const Scales scales = scales_of(call, sums.ss, sums.tt);
    if (E != Elements::none && !scaled(call)) {
      sums.value = load(strip.value + v);
    } else if constexpr (E != Elements::none) {
      V value = V{}, pull = V{}, along = V{};
#pragma GCC unroll 4
      for (int64_t d = 0; d < strip.depth; ++d) {
        const V x = load(strip.s + d * strip.pitch + v), y = load(strip.t + d * strip.pitch + v);
        const V distance = scales.a_s * x - scales.a_t * y, k = pull_of<E>(distance, call.beta);
        value += value_of<E>(distance, k), pull += k, along += k * x;
      }
      sums.value = value, sums.pull = pull, sums.along = along;
    }
    const V weight = load(strip.out + v);
    V loss = V{}, cosine = V{};
    Gradient of;
    settle(call, sums, scales, weight * call.gradient_scale, loss, cosine, of);
    store(strip.value + v, weight * loss), store(strip.ss + v, cosine);
    store(strip.a_s + v, scales.a_s), store(strip.a_t + v, scales.a_t);
    store(strip.p + v, of.p), store(strip.q + v, of.q), store(strip.r + v, of.r);
    store(strip.z + v, of.z);
  }
}

template <Elements E, bool Alone>
INLINE V gradient_at(const Strip& strip, const FeatureCall& call, int64_t d, int64_t v) {
  const V x = load(strip.s + d * strip.pitch + v), y = load(strip.t + d * strip.pitch + v);
  V g = V{};
  if constexpr (!Alone) {
    g = load(strip.p + v) * x + (load(strip.q + v) * y + load(strip.z + v));
  }
  if constexpr (E != Elements::none) {
    const V distance = load(strip.a_s + v) * x - load(strip.a_t + v) * y;
    g += load(strip.r + v) * pull_of<E>(distance, call.beta);
  }
  if (call.scale) g *= call.scale[d];
  return load_int(strip.inside + v) != 0 ? g : V{};
}

// Which positions count, and their weights; how many count.
static int64_t describe(const Strip& strip, const FeatureCall& call, int64_t row, int64_t count) {
  int64_t counting = 0;
  for (int64_t i = 0; i < strip.width; ++i) {
    const bool inside = i < count && counts(call, row + i);
    strip.inside[i] = inside ? -1 : 0;
    strip.out[i] = inside ? (float)(call.factors[0] * weight_of(call, row + i)) : 0.0f;
    counting += inside;
  }
  return counting;
}

// The loss and the weighted cosines of a strip that is settled.
struct Added {
  double loss, similarity;
};
static Added add_up(const Strip& strip, const FeatureCall& call, int64_t row, int64_t count) {
  Added sum{};
  for (int64_t i = 0; i < count; ++i) {
    const float value = strip.inside[i] ? strip.value[i] : 0.0f;
    if (call.row_losses) call.row_losses[row + i] = value;
    sum.loss += value;
    if (strip.inside[i]) sum.similarity += call.factors[1] * weight_of(call, row + i) * strip.ss[i];
  }
  return sum;
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
