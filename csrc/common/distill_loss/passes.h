// The arithmetic of the distillation loss over a strip (strip.h); every objective, any layout.
//
// Passes over the strip (it fits the second-level cache):
//   1  maximum and its first class, of student and teacher           (measure)
//   2  exponentials relative to the maximum, their sums              (accumulate)
//   3  for jsd and tvd, what needs both normalised                   (compare)
//      binary_kl, whose classes know nothing of each other, has this pass alone
//   4  the gradient, from what the passes before left in the buffers (gradient)
// Cross entropy has another temperature and so exponentials of its own, in a third buffer.
//
// A NaN among a row's logits is passed over by the maximum and makes a sum of exponentials NaN, and
// with it the loss and all the row's gradient. What weighs nothing is so told by `== 0`: `> 0` would
// take NaN for nothing.
#pragma once

#include "common/distill_loss/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// DKD's target: the label, or the teacher's choice where there is none.
INLINE void choose_targets(const Strip& strip) {
  for (int64_t v = 0; v < strip.width; v += W) {
    I label = load_int(strip.of.label + v);
    store_int(strip.of.target + v, label < 0 ? load_int(strip.of.arg_t + v) : label);
  }
}

// Cross entropy's exponentials, sum, and value at the label; before pass 2 overwrites the logits.
template <bool Across>
static void label_pass(const Strip strip, float smoothing) {
  const LaneState& of = strip.of;
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V top = of_row<Across>(of.max_s, v), sum = V{}, plain = V{}, at = V{};
    I label = of_row_int<Across>(of.label, v);
    for (int64_t d = 0; d < strip.depth; ++d) {
      V x = load(strip.s + place<Across>(strip, d, v)) - top;
      V e = exp2_of(x * LOG2E);
      store(strip.e + place<Across>(strip, d, v), e);
      sum += e;
      at = class_at<Across>(d) == label ? x : at;
      if (smoothing != 0) plain += x > 0.5f * NO_CLASS ? x : V{};
    }
    keep_sum<Across>(of.sum_label, v, sum);
    keep_sum<Across>(of.sum_logits, v, plain);
    keep_sum<Across>(of.at_label, v, at);
  }
}

// A distance, or NaN where it is infinite upwards, as the sums over all classes have it.
INLINE V finite(V x) { return x == __builtin_inff() ? x - x : x; }

// DKD looks at the target class apart: its logits move out of the strip, whose maximum is then
// that of the other classes. The binary part is done here, the rest is a forward KL.
template <bool Across>
static void take_target_out(const Strip strip, float k, float* target_s, float* target_t) {
  const LaneState& of = strip.of;
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    I target = of_row_int<Across>(of.target, v);
    V of_s = V{}, of_t = splat(-__builtin_inff()), top_s = splat(NO_CLASS), top_t = top_s;
    if constexpr (Across) {
      const int64_t at = v * strip.pitch + of.target[v];
      of_s = splat(strip.s[at]), of_t = splat(strip.t[at]);
      strip.s[at] = NO_CLASS, strip.t[at] = -__builtin_inff();
    }
    for (int64_t d = 0; d < strip.depth; ++d) {
      float *ps = strip.s + place<Across>(strip, d, v), *pt = strip.t + place<Across>(strip, d, v);
      V s = load(ps), t = load(pt);
      if constexpr (!Across) {
        I here = class_at<Across>(d) == target;
        of_s = here ? s : of_s, of_t = here ? t : of_t;
        s = here ? splat(NO_CLASS) : s, t = here ? splat(-__builtin_inff()) : t;
        store(ps, s), store(pt, t);
      }
      top_s = max(s, top_s), top_t = max(t, top_t);
    }
    if constexpr (Across) top_s = max_across(top_s), top_t = max_across(top_t);
    keep<Across>(of.max_s, v, top_s), keep<Across>(of.max_t, v, top_t);
    // Exponents of the target relative to the others' maximum; positive where it leads.
    keep<Across>(target_s, v, finite(of_s - top_s) * k);
    keep<Across>(target_t, v, finite(of_t - top_t) * k);
  }
}

// Pass 2. Leaves in the buffers: forward KL, DKD, TVD: both exponentials; reverse KL: the student's,
// and the difference of exponents; MSE: the difference of logits; JSD: the logits, untouched.
template <Objective O, bool Across, bool Fetch>
static void accumulate(const Strip strip, float k) {
  const LaneState& of = strip.of;
  Ahead ahead = ahead_of(strip);
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V top_s = of_row<Across>(of.max_s, v), top_t = of_row<Across>(of.max_t, v);
    V sum_s = V{}, sum_t = V{}, mixed = V{};
#pragma GCC unroll 4
    for (int64_t d = 0; d < strip.depth; ++d) {
      float *ps = strip.s + place<Across>(strip, d, v), *pt = strip.t + place<Across>(strip, d, v);
      V s = load(ps), t = load(pt);
      fetch_next<Across, Fetch>(strip, d, v, ahead);
      if constexpr (O == Objective::mse) {
        V difference = t <= NO_CLASS ? V{} : s - t;
        mixed += difference * difference;
        store(ps, difference);
        continue;
      }
      V ys = (s - top_s) * k, yt = (t - top_t) * k;
      V es = exp2_of(ys), et = exp2_of(yt);
      sum_s += es, sum_t += et;
      if constexpr (O == Objective::forward_kl || O == Objective::dkd) {
        mixed += et > 0 ? et * (yt - ys) : V{};
        store(ps, es), store(pt, et);
      } else if constexpr (O == Objective::reverse_kl) {
        mixed += es > 0 ? es * (ys - yt) : V{};
        store(ps, es), store(pt, ys - yt);
      } else if constexpr (O == Objective::tvd) {
        store(ps, es), store(pt, et);
      }
    }
    keep_sum<Across>(of.sum_s, v, sum_s);
    keep_sum<Across>(of.sum_t, v, sum_t);
    keep_sum<Across>(of.mixed, v, mixed);
  }
}

// Pass 3 of JSD: leaves q and log2(q / m), m = b p + (1 - b) q. With x = log2(p / q),
// log2(m / q) = log2(b 2^x + 1 - b), taken from the larger of the two terms.
template <bool Across>
static void compare_jsd(const Strip strip, float k, float b) {
  const LaneState& of = strip.of;
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V log_sum_s = log2_of(of_row<Across>(of.sum_s, v));
    V log_sum_t = log2_of(of_row<Across>(of.sum_t, v));
    V top_s = of_row<Across>(of.max_s, v), top_t = of_row<Across>(of.max_t, v);
    V of_p = V{}, of_q = V{};
    for (int64_t d = 0; d < strip.depth; ++d) {
      float *ps = strip.s + place<Across>(strip, d, v), *pt = strip.t + place<Across>(strip, d, v);
      V log_q = (load(ps) - top_s) * k - log_sum_s, log_p = (load(pt) - top_t) * k - log_sum_t;
      V q = exp2_of(log_q), p = exp2_of(log_p), x = log_p - log_q;
      V small = exp2_of(-absolute(x));
      V inside = x > 0 ? b + (1 - b) * small : b * small + (1 - b);
      V m_over_larger = log2_of(inside), m_over_q = m_over_larger + max(x, V{});
      of_q -= q == 0 ? V{} : q * m_over_q;
      of_p += p == 0 ? V{} : p * ((x > 0 ? V{} : x) - m_over_larger);
      store(ps, q), store(pt, -m_over_q);
    }
    keep_sum<Across>(of.mixed, v, of_q);
    keep_sum<Across>(of.loss, v, b * of_p + (1 - b) * of_q);
  }
}

// Pass 3 of TVD: the value, and the sum of q sign(q - p).
template <bool Across>
static void compare_tvd(const Strip strip) {
  const LaneState& of = strip.of;
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V inverse_s = 1 / of_row<Across>(of.sum_s, v), inverse_t = 1 / of_row<Across>(of.sum_t, v);
    V value = V{}, leaning = V{};
    for (int64_t d = 0; d < strip.depth; ++d) {
      V q = load(strip.s + place<Across>(strip, d, v)) * inverse_s;
      V p = load(strip.t + place<Across>(strip, d, v)) * inverse_t;
      value += absolute(p - q);
      leaning += q > p ? q : (q < p ? -q : V{});
    }
    keep_sum<Across>(of.mixed, v, leaning);
    keep_sum<Across>(of.loss, v, 0.5f * value);
  }
}

// Binary KL: each class is a distribution of its own over yes and no. Mirrored where the teacher says
// yes, so that p is the smaller of its two probabilities and no difference cancels; with x and y the
// exponents, log2((1 + 2^x) / (1 + 2^y)) - p (x - y). Leaves the weighted q - p in the student's buffer.
template <bool Across, bool Fetch, bool Weighted>
static void compare_binary(const Strip strip, float k, float gamma, float floor) {
  Ahead ahead = ahead_of(strip);
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V value = V{};
#pragma GCC unroll 2
    for (int64_t d = 0; d < strip.depth; ++d) {
      float *ps = strip.s + place<Across>(strip, d, v), *pt = strip.t + place<Across>(strip, d, v);
      fetch_next<Across, Fetch>(strip, d, v, ahead);
      V a = load(ps) * k, b = load(pt) * k;
      V x = b > 0 ? -a : a, y = -absolute(b);
      V ex = exp2_of(-absolute(a)), ey = exp2_of(y);
      V over_x = 1 / (1 + ex), over_y = 1 / (1 + ey);
      V q = x > 0 ? over_x : ex * over_x, p = ey * over_y;
      V term = max(V{}, x) + log2_of((1 + ex) * over_y);
      term -= p == 0 ? V{} : p * (x - y);
      V slope = q - p;
      slope = b > 0 ? -slope : slope;
      if constexpr (Weighted) {
        V confidence = b > 0 ? over_y : p;
        V weight = exp2_of(gamma * log2_of(max(splat(floor), confidence)));
        term *= weight, slope *= weight;
      }
      value += term;
      store(ps, slope);
    }
    keep_sum<Across>(strip.of.mixed, v, value);
  }
}

// log2(2^a + 1).
INLINE V log2_one_plus(V a) {
  return max(a, V{}) + log2_of(1.0f + exp2_of(-absolute(a)));
}

// Everything between the sums and the gradient: the loss of each lane (times its weights) and, in
// place of the sums, the gradient's coefficients.
template <Objective O>
static void settle(const Strip strip, const DistillCall& call) {
  const LaneState& of = strip.of;
  const float T = call.temperature, scale = T * T * LN2;
  for (int64_t v = 0; v < strip.width; v += W) {
    // The logarithm of a ratio, not a difference of logarithms: T^2 may be large, the loss small.
    V weight = load(of.weight_objective + v), value = V{};
    V out = weight * call.gradient_scale;
    V sum_s = load(of.sum_s + v), sum_t = load(of.sum_t + v), mixed = load(of.mixed + v);
    V a = V{}, b = V{};  // what the two buffers are multiplied by, see gradient()
    if constexpr (O == Objective::forward_kl) {
      value = scale * (mixed / sum_t + log2_of(sum_s / sum_t));
      a = T * out / sum_s, b = T * out / sum_t;
    } else if constexpr (O == Objective::reverse_kl) {
      value = scale * (mixed / sum_s + log2_of(sum_t / sum_s));
      a = T * LN2 * out / sum_s;
      b = mixed / sum_s + 0 * sum_t;  // NaN if the teacher has one, also where mixed missed it
    } else if constexpr (O == Objective::jsd) {
      value = scale * load(of.loss + v);
      a = T * LN2 * (1 - call.parameters[0]) * out;
      b = mixed;
    } else if constexpr (O == Objective::tvd) {
      value = load(of.loss + v);
      a = 1 / sum_s, b = 1 / sum_t;
      store(of.mixed2 + v, 0.5f / T * out);
    } else if constexpr (O == Objective::mse) {
      value = mixed;
      a = 2 * out;
    } else if constexpr (O == Objective::binary_kl) {
      value = scale * mixed;
      a = T * out;
    } else if constexpr (O == Objective::dkd) {
      // The target's exponents relative to the others' maximum (take_target_out), and the others'
      // sums: log2 of p_target and of 1 - p_target, for both.
      V others_s = log2_of(sum_s), others_t = log2_of(sum_t);
      V odds_s = load(of.mixed2 + v) - others_s, odds_t = load(of.target_gradient + v) - others_t;
      V not_s = -log2_one_plus(odds_s), not_t = -log2_one_plus(odds_t);
      V at_s = -log2_one_plus(-odds_s), at_t = -log2_one_plus(-odds_t);
      V p_at = exp2_of(at_t), p_not = exp2_of(not_t), q_at = exp2_of(at_s);
      V binary = p_at == 0 ? V{} : p_at * (at_t - at_s);
      binary += p_not == 0 ? V{} : p_not * (not_t - not_s);
      V rest = mixed / sum_t + log2_of(sum_s / sum_t);
      value = scale * (call.parameters[0] * binary + call.parameters[1] * rest);
      V pull = call.parameters[0] * T * out * (q_at - p_at);
      a = (call.parameters[1] * T * out - pull) / sum_s;
      b = call.parameters[1] * T * out / sum_t;
      store(of.target_gradient + v, pull);
    }
    store(of.sum_s + v, a), store(of.sum_t + v, b);
    V loss = O == Objective::none ? V{} : weight * value;
    if (call.cross_entropy) {
      V label_weight = load(of.weight_labels + v), sum = load(of.sum_label + v);
      const float smoothing = call.label_smoothing;
      V log_sum = LN2 * log2_of(sum);
      V at = log_sum - load(of.at_label + v);
      V mean = log_sum - load(of.sum_logits + v) / (float)strip.classes;
      V entropy = smoothing == 0 ? at : (1 - smoothing) * at + smoothing * mean;
      loss += label_weight * entropy;
      label_weight *= call.gradient_scale;
      store(of.sum_label + v, label_weight / sum);
      store(of.at_label + v, (1 - smoothing) * label_weight);
      store(of.sum_logits + v, smoothing / (float)strip.classes * label_weight);
    }
    store(of.loss + v, loss);
  }
}

// Pass 4: the gradient of the vector at depth d of row v (or of W rows from v on).
template <Objective O, bool Across, bool CrossEntropy>
INLINE V gradient(const Strip& strip, int64_t d, int64_t v) {
  const LaneState& of = strip.of;
  const int64_t at = place<Across>(strip, d, v);
  V a = of_row<Across>(of.sum_s, v), b = of_row<Across>(of.sum_t, v), result = V{};
  if constexpr (O == Objective::forward_kl || O == Objective::dkd) {
    result = a * load(strip.s + at) - b * load(strip.t + at);
    if constexpr (O == Objective::dkd) {
      I here = class_at<Across>(d) == of_row_int<Across>(of.target, v);
      result = here ? of_row<Across>(of.target_gradient, v) : result;
    }
  } else if constexpr (O == Objective::reverse_kl || O == Objective::jsd) {
    V q = load(strip.s + at);
    result = a * (q == 0 ? V{} : q * (load(strip.t + at) - b));
  } else if constexpr (O == Objective::tvd) {
    V q = a * load(strip.s + at), p = b * load(strip.t + at);
    V sign = q > p ? splat(1.0f) : (q < p ? splat(-1.0f) : V{});
    result = of_row<Across>(of.mixed2, v) * q * (sign - of_row<Across>(of.mixed, v));
  } else if constexpr (O == Objective::mse || O == Objective::binary_kl) {
    result = a * load(strip.s + at);
  }
  if constexpr (CrossEntropy) {
    result += of_row<Across>(of.sum_label, v) * load(strip.e + at) - of_row<Across>(of.sum_logits, v);
    I here = class_at<Across>(d) == of_row_int<Across>(of.label, v);
    result -= here ? of_row<Across>(of.at_label, v) : V{};
  }
  return result;
}

// All passes but the first and the last.
template <bool Across, bool Fetch>
static void settle_strip(const Strip strip, const DistillCall& call) {
  const float k = LOG2E / call.temperature;
  if (call.cross_entropy) label_pass<Across>(strip, call.label_smoothing);
  switch (call.objective) {
    case Objective::none:
      return settle<Objective::none>(strip, call);
    case Objective::forward_kl:
      accumulate<Objective::forward_kl, Across, Fetch>(strip, k);
      return settle<Objective::forward_kl>(strip, call);
    case Objective::reverse_kl:
      accumulate<Objective::reverse_kl, Across, Fetch>(strip, k);
      return settle<Objective::reverse_kl>(strip, call);
    case Objective::jsd:
      accumulate<Objective::jsd, Across, Fetch>(strip, k);
      compare_jsd<Across>(strip, k, call.parameters[0]);
      return settle<Objective::jsd>(strip, call);
    case Objective::tvd:
      accumulate<Objective::tvd, Across, Fetch>(strip, k);
      compare_tvd<Across>(strip);
      return settle<Objective::tvd>(strip, call);
    case Objective::dkd:
      choose_targets(strip);
      take_target_out<Across>(strip, k, strip.of.mixed2, strip.of.target_gradient);
      accumulate<Objective::dkd, Across, Fetch>(strip, k);
      return settle<Objective::dkd>(strip, call);
    case Objective::mse:
      accumulate<Objective::mse, Across, Fetch>(strip, k);
      return settle<Objective::mse>(strip, call);
    case Objective::binary_kl:
      if (call.parameters[0] != 0) {
        compare_binary<Across, Fetch, true>(strip, k, call.parameters[0], call.parameters[1]);
      } else {
        compare_binary<Across, Fetch, false>(strip, k, 0, 0);
      }
      return settle<Objective::binary_kl>(strip, call);
  }
}

// Calls `use.template operator()<Objective, CrossEntropy>()` for the call's own two.
template <class Use>
INLINE void with_objective(const DistillCall& call, const Use& use) {
  auto choose = [&]<Objective O>() __attribute__((always_inline)) {
    if (call.cross_entropy) {
      use.template operator()<O, true>();
    } else {
      use.template operator()<O, false>();
    }
  };
  switch (call.objective) {
    case Objective::none:
      return choose.template operator()<Objective::none>();
    case Objective::forward_kl:
      return choose.template operator()<Objective::forward_kl>();
    case Objective::reverse_kl:
      return choose.template operator()<Objective::reverse_kl>();
    case Objective::jsd:
      return choose.template operator()<Objective::jsd>();
    case Objective::tvd:
      return choose.template operator()<Objective::tvd>();
    case Objective::dkd:
      return choose.template operator()<Objective::dkd>();
    case Objective::mse:
      return choose.template operator()<Objective::mse>();
    case Objective::binary_kl:
      return choose.template operator()<Objective::binary_kl>();
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
