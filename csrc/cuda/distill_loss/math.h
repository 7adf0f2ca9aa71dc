// The arithmetic of the distillation loss for one row, shared by its CUDA kernels.
//
// Exponents and logarithms are to the base 2, of differences to a maximum: k = log2(e) / T. A class
// that is not there is -inf in both logits; one that the teacher rules out, in the teacher's.
//
// A NaN among a row's logits is passed over by the maxima and makes a sum of exponentials NaN, and with
// it the loss and all the row's gradient. What weighs nothing is so told by `== 0`: `> 0` would take
// NaN for nothing.
#pragma once

#include "cuda/device.h"
#include "cuda/distill_loss/call.h"

namespace isp_distill::cuda {

inline constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;
inline constexpr float kNoLogit = -1e30f;

ISP_DEVICE float minus_infinity() { return float_of(0xff800000u); }
// Of a number and what is none, the number.
ISP_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
ISP_DEVICE float smaller(float a, float b) { return fminf(a, b); }

// Sums over classes. mixed: forward_kl's sum of et (yt - ys) and reverse_kl's of es (ys - yt), in
// exponents y below the maxima; mse's squared differences.
struct Sums {
  float s = 0, t = 0, mixed = 0;
  float total = 0, plain = 0, at_label = 0;  // cross entropy: of exponentials, of s - top, s[label]
};

ISP_DEVICE float difference(float s, float t) { return t <= kNoLogit ? 0.0f : s - t; }

template <Objective O>
ISP_DEVICE void add_class(Sums& sums, float s, float t, float top_s, float top_t, float k) {
  if constexpr (O == Objective::mse) {
    sums.mixed += difference(s, t) * difference(s, t);
  } else if constexpr (O != Objective::none) {
    const float y_s = (s - top_s) * k, y_t = (t - top_t) * k;
    const float e_s = exp_2(y_s), e_t = exp_2(y_t);
    sums.s += e_s, sums.t += e_t;
    if constexpr (O == Objective::forward_kl) sums.mixed += e_t > 0 ? e_t * (y_t - y_s) : 0.0f;
    if constexpr (O == Objective::reverse_kl) sums.mixed += e_s > 0 ? e_s * (y_s - y_t) : 0.0f;
  }
}

ISP_DEVICE void add_class_label(Sums& sums, float s, bool at_label, float top) {
  sums.total += exp_2((s - top) * kLog2e);
  if (s > minus_infinity()) sums.plain += s - top;
  if (at_label) sums.at_label += s - top;
}

// The sums when the maxima rise by these exponents (0 or more).
template <Objective O>
ISP_DEVICE void raise(Sums& sums, float rise_s, float rise_t) {
  if constexpr (O == Objective::none || O == Objective::mse) return;
  const float keep_s = exp_2(-rise_s), keep_t = exp_2(-rise_t);
  if constexpr (O == Objective::forward_kl) {
    sums.mixed = sums.t > 0 ? keep_t * (sums.mixed + (rise_s - rise_t) * sums.t) : 0.0f;
  }
  if constexpr (O == Objective::reverse_kl) {
    // Infinite where the teacher rules out a class, unless that class weighs nothing here.
    const bool weighs = sums.s > 0 && keep_s > 0;
    sums.mixed = weighs ? keep_s * (sums.mixed + (rise_t - rise_s) * sums.s) : 0.0f;
  }
  sums.s *= keep_s, sums.t *= keep_t;
}

struct Choice {
  float top;
  int index;
};
ISP_DEVICE Choice better(Choice a, Choice b) {
  return b.top > a.top || (b.top == a.top && b.index < a.index) ? b : a;
}

// A row's maxima and sums while its classes pass by.
struct Passing {
  Choice s = {kNoLogit, 0x7fffffff}, t = {kNoLogit, 0x7fffffff};
  Sums sums;
  float seen = 0;  // the student's logits that are there
};

// The sums of student's and teacher's classes seen so far when their maxima rise to these.
template <Objective O>
ISP_DEVICE void raise_to(Passing& row, float top_s, float top_t, const LossCall& call) {
  raise<O>(row.sums, (top_s - row.s.top) * call.k, (top_t - row.t.top) * call.k);
  if (call.cross_entropy) {
    row.sums.total *= exp_2((row.s.top - top_s) * kLog2e);
    if (row.seen > 0) row.sums.plain -= (top_s - row.s.top) * row.seen;
  }
  row.s.top = top_s, row.t.top = top_t;
}

// Takes in classes index, index + apart, ... : the sums rise once for all of them, and only where a
// maximum does. Their label's logit is the caller's affair.
template <Objective O, int Count>
ISP_DEVICE void pass_by(Passing& row, const float (&s)[Count], const float (&t)[Count], int index,
                        int apart, const LossCall& call) {
  float top_s = s[0], top_t = t[0];
  ISP_UNROLL for (int i = 1; i < Count; ++i) top_s = larger(top_s, s[i]), top_t = larger(top_t, t[i]);
  if (top_s > row.s.top || top_t > row.t.top) {
    int at_s = row.s.index, at_t = row.t.index;
    ISP_UNROLL for (int i = Count - 1; i >= 0; --i) {
      if (s[i] == top_s && top_s > row.s.top) at_s = index + i * apart;
      if (t[i] == top_t && top_t > row.t.top) at_t = index + i * apart;
    }
    raise_to<O>(row, larger(top_s, row.s.top), larger(top_t, row.t.top), call);
    row.s.index = at_s, row.t.index = at_t;
  }
  ISP_UNROLL for (int i = 0; i < Count; ++i) {
    add_class<O>(row.sums, s[i], t[i], row.s.top, row.t.top, call.k);
    if (!call.cross_entropy) continue;
    add_class_label(row.sums, s[i], false, row.s.top);
    row.seen += s[i] > minus_infinity() ? 1.0f : 0.0f;
  }
}

// jsd's mixture m = beta p + (1 - beta) q: with x = log2(p / q), m / q = beta 2^x + 1 - beta, taken
// from the larger of p and q.
struct Mixture {
  float q, p, m_over_q, p_over_m;  // the last two as logarithms
};
ISP_DEVICE Mixture mixture(float s, float t, float top_s, float top_t, float log_sum_s,
                           float log_sum_t, float k, float beta) {
  const float log_q = (s - top_s) * k - log_sum_s, log_p = (t - top_t) * k - log_sum_t;
  const float x = log_p - log_q, small = exp_2(x > 0 ? -x : x);
  const float inside = x > 0 ? beta + (1 - beta) * small : beta * small + (1 - beta);
  const float over_larger = log_2(inside);
  return {exp_2(log_q), exp_2(log_p), over_larger + (x > 0 ? x : 0.0f),
          (x > 0 ? 0.0f : x) - over_larger};
}

// jsd's two sums, what a class adds to them.
ISP_DEVICE void compare(float& of_p, float& of_q, const Mixture& m) {
  of_p += m.p == 0 ? 0.0f : m.p * m.p_over_m;
  of_q -= m.q == 0 ? 0.0f : m.q * m.m_over_q;
}

// What a row needs for its gradient. a, b, c, d mean what `settle` says.
struct Row {
  float top_s, top_t, best_s;
  float a = 0, b = 0, c = 0, d = 0;
  float label_scale = 0, label_weight = 0;
  int label = -1;
};

// The row's weighted objective; fills the coefficients. of_p, of_q: jsd's two sums.
template <Objective O>
ISP_DEVICE float settle(Row& row, const Sums& sums, float of_p, float of_q, float weight,
                        const LossCall& call) {
  const float T = call.temperature, out = weight * call.gradient_scale;
  float value = 0;
  if constexpr (O == Objective::forward_kl) {
    // The logarithm of a ratio, not a difference of logarithms: T^2 may be large, the loss small.
    value = T * T * kLn2 * (sums.mixed / sums.t + log_2(sums.s / sums.t));
    row.a = T * out / sums.s, row.b = T * out / sums.t;
  } else if constexpr (O == Objective::reverse_kl) {
    value = T * T * kLn2 * (sums.mixed / sums.s + log_2(sums.t / sums.s));
    row.a = out * T * kLn2 / sums.s, row.b = sums.mixed / sums.s + 0 * sums.t;
  } else if constexpr (O == Objective::jsd) {
    value = T * T * kLn2 * (call.beta * of_p + (1 - call.beta) * of_q);
    row.a = out * T * kLn2 * (1 - call.beta), row.b = of_q;
    row.c = log_2(sums.s), row.d = log_2(sums.t);
  } else if constexpr (O == Objective::mse) {
    value = sums.mixed, row.a = 2 * out;
  }
  return weight * value;
}

// The row's weighted cross entropy.
ISP_DEVICE float settle_label(Row& row, const Sums& sums, float weight, const LossCall& call) {
  const float log_sum = log_2(sums.total) * kLn2;
  float entropy = log_sum - sums.at_label;
  if (call.smoothing != 0) {
    entropy = (1 - call.smoothing) * entropy +
              call.smoothing * (log_sum - sums.plain / static_cast<float>(call.classes));
  }
  row.label_weight = weight * call.gradient_scale;
  row.label_scale = row.label_weight / sums.total;
  return weight * entropy;
}

// The derivative of both by the student's logit of a class. Without `Labels` there is no cross entropy.
template <Objective O, bool Labels = true>
ISP_DEVICE float gradient_of(const Row& row, float s, float t, int index, const LossCall& call) {
  const float k = call.k;
  float result = 0;
  if constexpr (O == Objective::forward_kl) {
    result = row.a * exp_2((s - row.top_s) * k) - row.b * exp_2((t - row.top_t) * k);
  } else if constexpr (O == Objective::reverse_kl) {
    const float y_s = (s - row.top_s) * k, y_t = (t - row.top_t) * k, q = exp_2(y_s);
    result = row.a * (q == 0 ? 0.0f : q * (y_s - y_t - row.b));
  } else if constexpr (O == Objective::jsd) {
    const Mixture m =
        mixture(s, t, row.top_s, row.top_t, row.c, row.d, k, call.beta);
    result = row.a * (m.q == 0 ? 0.0f : m.q * (-m.m_over_q - row.b));
  } else if constexpr (O == Objective::mse) {
    result = row.a * difference(s, t);
  }
  if (Labels && call.cross_entropy) {
    result += row.label_scale * exp_2((s - row.best_s) * kLog2e);
    result -= row.label_weight * call.smoothing_of_class;
    if (index == row.label) result -= row.label_weight * (1 - call.smoothing);
  }
  return result;
}

}  // namespace isp_distill::cuda
