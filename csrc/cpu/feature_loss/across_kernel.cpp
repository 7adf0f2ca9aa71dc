// The feature loss of rows whose channels lie contiguous: [N, D], tokens [N, L, D], channels last.
//
// A row is read once from memory; the passes over its sums and its gradient find it in the first-level
// cache (8 D bytes). Rows of float32 are used where they lie, others are converted into a buffer first.
// Floor: the memory stream of two reads and one write, as a pass takes a few instructions for each
// vector. The next row is prefetched while this one is computed, and streaming stores keep the
// gradient from being fetched before it is written.
#include "cpu/feature_loss/settle.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// How a row of one of the two tensors is reached.
struct Side {
  const Logits* features;
  int64_t size;       // bytes of an element
  bool as_it_lies;    // float32, contiguous, a whole number of vectors: no copy
  float* buffer;      // else where it goes
  const float* x;     // the row
  const char* next;   // the row after it, to be prefetched
};

INLINE int64_t offset_of(const FeatureCall& call, const Logits& at, int64_t row) {
  const int64_t b = row % call.size_b, rest = row / call.size_b;
  return rest / call.size_a * at.stride_n + rest % call.size_a * at.stride_a + b * at.stride_b;
}

Side side_of(const FeatureCall& call, const Logits& features, float* buffer) {
  Side side{};
  side.features = &features;
  side.size = features.dtype == Dtype::float32 ? 4 : 2;
  side.as_it_lies = features.dtype == Dtype::float32 && features.stride_class == 1 &&
                    call.channels % W == 0 && call.normalise != Normalise::teacher;
  side.buffer = buffer;
  return side;
}

// Into the buffer, normalised by the teacher's statistics where that is asked for; zeros to fill up.
template <Dtype D>
void convert(const FeatureCall& call, const Side& side, const char* from) {
  constexpr int size = size_of<D>;
  const int64_t stride = side.features->stride_class;
  for (int64_t c = 0; c < call.channels; c += W) {
    V x = load_lanes<D>(from + c * stride * size, stride, call.channels - c);
    // Both are filled up with zeros.
    if (call.scale) x = (x - load(call.mean + c)) * load(call.scale + c);
    store(side.buffer + c, x);
  }
}

void reach(const FeatureCall& call, Side& side, int64_t row, int64_t next) {
  const Logits& features = *side.features;
  const char* from = features.data + offset_of(call, features, row) * side.size;
  side.next = features.data + offset_of(call, features, next) * side.size;
  side.x = side.as_it_lies ? (const float*)from : side.buffer;
  if (side.as_it_lies) return;
  with_dtype(features.dtype, [&]<Dtype D>() { convert<D>(call, side, from); });
}

// The row's mean in all lanes. What fills up the last vector is set to it: its x' is then 0.
V mean_of(const FeatureCall& call, const Side& side) {
  V even = V{}, odd = V{};
  int64_t c = 0;
  for (; c + 2 * W <= call.channels; c += 2 * W) even += load(side.x + c), odd += load(side.x + c + W);
  for (; c < call.channels; c += W) even += load(side.x + c);
  const V mean = sum_across(even + odd) / (float)call.channels;
  if (!side.as_it_lies) {
    for (int64_t i = call.channels; i % W; ++i) side.buffer[i] = mean[0];
  }
  return mean;
}

// The sums of Sums::ss, tt, st and, where the scales are known beforehand (1), of the elements.
template <Elements E>
Sums moments(const FeatureCall& call, const Side& s, const Side& t, V m_s, V m_t) {
  V ss[2] = {}, tt[2] = {}, st[2] = {}, value[2] = {};
  const int64_t depth = (call.channels + W - 1) / W;
  const float beta = call.beta;
  const auto take = [&](int64_t d, int lane) __attribute__((always_inline)) {
    __builtin_prefetch(s.next + d * W * s.size);
    __builtin_prefetch(t.next + d * W * t.size);
    const V x = load(s.x + d * W) - m_s, y = load(t.x + d * W) - m_t;
    ss[lane] += x * x, tt[lane] += y * y, st[lane] += x * y;
    if constexpr (E != Elements::none) {
      const V distance = x - y;
      value[lane] += value_of<E>(distance, pull_of<E>(distance, beta));
    }
  };
  int64_t d = 0;
  for (; d + 2 <= depth; d += 2) take(d, 0), take(d + 1, 1);
  if (d < depth) take(d, 0);
  return {sum_across(ss[0] + ss[1]), sum_across(tt[0] + tt[1]), sum_across(st[0] + st[1]),
          sum_across(value[0] + value[1]), V{}, V{}};
}

// The elements' sums where the scales had to be found first.
template <Elements E>
void elements(const FeatureCall& call, const Side& s, const Side& t, V m_s, V m_t,
              const Scales& scales, Sums& sums) {
  const int64_t depth = (call.channels + W - 1) / W;
  const float beta = call.beta;
  V value = V{}, pull = V{}, along = V{};
#pragma GCC unroll 2
  for (int64_t d = 0; d < depth; ++d) {
    const V x = load(s.x + d * W) - m_s, y = load(t.x + d * W) - m_t;
    const V distance = scales.a_s * x - scales.a_t * y, k = pull_of<E>(distance, beta);
    value += value_of<E>(distance, k), pull += k, along += k * x;
  }
  sums.value = sum_across(value), sums.pull = sum_across(pull), sums.along = sum_across(along);
}

template <Elements E, bool Alone>
INLINE V gradient_at(const FeatureCall& call, const Side& s, const Side& t, V m_s, V m_t,
                     const Scales& scales, const Gradient& of, int64_t c) {
  const V x = load(s.x + c) - m_s, y = load(t.x + c) - m_t;
  V g = V{};
  if constexpr (!Alone) g = of.p * x + (of.q * y + of.z);
  if constexpr (E != Elements::none) {
    g += of.r * pull_of<E>(scales.a_s * x - scales.a_t * y, call.beta);
  }
  return call.scale ? g * load(call.scale + c) : g;
}

template <Elements E, bool Alone, Dtype D>
void write(const FeatureCall& call, const Side& s, const Side& t, V m_s, V m_t,
           const Scales& scales, const Gradient& of, char* to) {
  constexpr int size = size_of<D>;
  const int64_t stride = call.gradient.stride_class;
  const int64_t whole = stride == 1 ? call.channels / W * W : 0;
  const bool streaming = D == Dtype::float32 && call.streaming && (uintptr_t)to % (4 * W) == 0;
  for (int64_t c = 0; c < whole; c += W) {
    const V g = gradient_at<E, Alone>(call, s, t, m_s, m_t, scales, of, c);
    if (streaming) {
      stream((float*)to + c, g);
    } else {
      store_as<D>(to + c * size, g);
    }
  }
  for (int64_t c = whole; c < call.channels; c += W) {
    const V g = gradient_at<E, Alone>(call, s, t, m_s, m_t, scales, of, c);
    store_lanes<D>(to + c * stride * size, stride, call.channels - c, g);
  }
}

template <Elements E>
void write_as(const FeatureCall& call, const Side& s, const Side& t, V m_s, V m_t,
              const Scales& scales, const Gradient& of, char* to) {
  with_dtype(call.gradient.dtype, [&]<Dtype D>() {
    if (E != Elements::none && elements_alone(call)) {
      write<E, true, D>(call, s, t, m_s, m_t, scales, of, to);
    } else {
      write<E, false, D>(call, s, t, m_s, m_t, scales, of, to);
    }
  });
}

void clear_row(const FeatureCall& call, char* to) {
  const int64_t size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  const int64_t step = call.gradient.stride_class * size;
  for (int64_t c = 0; c < call.channels; ++c) memset(to + c * step, 0, size);
}

}  // namespace

// Tasks [begin, end), each of call.rows rows. `memory` holds two rows, filled up to 16 channels.
void feature_across(const FeatureCall& call, int64_t begin, int64_t end, float* memory) {
  const int64_t padded = (call.channels + 15) / 16 * 16;
  Side s = side_of(call, call.student, memory), t = side_of(call, call.teacher, memory + padded);
  const int64_t rows = call.size_n * call.size_a * call.size_b;
  const int64_t g_size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  const bool centred = call.normalise == Normalise::layer;
  for (int64_t task = begin; task < end; ++task) {
    double total = 0, similarity = 0;
    const int64_t last = (task + 1) * call.rows < rows ? (task + 1) * call.rows : rows;
    for (int64_t row = task * call.rows; row < last; ++row) {
      char* to = call.gradient.data
                     ? call.gradient.data + offset_of(call, call.gradient, row) * g_size
                     : nullptr;
      if (!counts(call, row)) {
        if (to) clear_row(call, to);
        if (call.row_losses) call.row_losses[row] = 0;
        continue;
      }
      const int64_t next = row + 1 < last ? row + 1 : row;
      reach(call, s, row, next), reach(call, t, row, next);
      const V m_s = centred ? mean_of(call, s) : V{}, m_t = centred ? mean_of(call, t) : V{};
      const float weight = weight_of(call, row);
      const V out = splat((float)(call.factors[0] * weight) * call.gradient_scale);
      V loss = V{}, cosine = V{};
      with_elements(call.elements, [&]<Elements E>() __attribute__((always_inline)) {
        Sums sums = scaled(call) ? moments<Elements::none>(call, s, t, m_s, m_t)
                           : moments<E>(call, s, t, m_s, m_t);
        const Scales scales = scales_of(call, sums.ss, sums.tt);
        if constexpr (E != Elements::none) {
          if (scaled(call)) elements<E>(call, s, t, m_s, m_t, scales, sums);
        }
        Gradient of;
        settle(call, sums, scales, out, loss, cosine, of);
        if (to) write_as<E>(call, s, t, m_s, m_t, scales, of, to);
      });
      const float value = (float)(call.factors[0] * weight) * loss[0];
      if (call.row_losses) call.row_losses[row] = value;
      total += value;
      similarity += call.factors[1] * weight * cosine[0];
    }
    call.task_losses[task] = total;
    call.task_similarities[task] = similarity;
  }
  if (call.streaming) end_of_streaming();
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
