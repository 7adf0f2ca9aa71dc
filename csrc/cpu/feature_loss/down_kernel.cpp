// The feature loss of maps [N, D, H, W]: positions lie contiguous, channels far apart.
//
// A task is one strip of positions with all their channels. Reading streams along the positions of one
// channel after the other and copies them into a float buffer: planes whose distance is a power of two
// fall into the same cache sets, and a second look at them would go to memory again. The buffers
// (8 bytes an element) fit the second-level cache; the sums after the first and the gradient come from
// there. A position is a lane, so that sums over channels are sums of vectors.
// Floor: the memory stream of two reads and one write.
#include "cpu/feature_loss/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

struct Place {
  int64_t n, a, b, count;  // the strip's first position, and how many it has
};

INLINE char* address(const Logits& at, const Place& place) {
  const int64_t size = at.dtype == Dtype::float32 ? 4 : 2;
  return at.data + (place.n * at.stride_n + place.a * at.stride_a + place.b * at.stride_b) * size;
}

// Both strips into the buffers, and what can be summed on the way: products, and the elements' values
// where nothing scales them; or (Centre) the features themselves, since layer norm's products are about
// the means. Four channels at once, so that the running sums are read and written once for all of them.
// Plain: lanes [from, to) are all there, contiguous, inside the mask, and nothing is done to them; the
// loop then holds nothing but loads, products and stores, and keeps up with memory.
template <Dtype S, Dtype T, bool Plain, Elements E, bool Centre>
void load_lanes_of(const Strip& strip, const FeatureCall& call, const Place& at, int64_t from,
                   int64_t to) {
  constexpr int s_size = size_of<S>, t_size = size_of<T>, kTogether = 4, kAhead = 8;
  const char *from_s = address(call.student, at), *from_t = address(call.teacher, at);
  const int64_t step_s = call.student.stride_class * s_size, along_s = call.student.stride_b;
  const int64_t step_t = call.teacher.stride_class * t_size, along_t = call.teacher.stride_b;
  const float beta = call.beta;
  for (int64_t v = from; v < to; v += W) {
    store(strip.ss + v, V{}), store(strip.tt + v, V{}), store(strip.st + v, V{});
    if constexpr (E != Elements::none) store(strip.value + v, V{});
  }
  const auto take = [&]<int Together>(int64_t d) __attribute__((always_inline)) {
    // The last channels look ahead at themselves.
    const int64_t ahead = d + kAhead + Together <= strip.depth ? kAhead : 0;
    for (int64_t v = from; v < to; v += W) {
      V ss = load(strip.ss + v), tt = load(strip.tt + v), st = load(strip.st + v), value = V{};
      if constexpr (E != Elements::none) value = load(strip.value + v);
#pragma GCC unroll 4
      for (int j = 0; j < Together; ++j) {
        V x, y;
        if constexpr (Plain) {
          const char* p = from_s + (d + j) * step_s + v * s_size;
          const char* q = from_t + (d + j) * step_t + v * t_size;
          __builtin_prefetch(p + ahead * step_s, 0, 2), __builtin_prefetch(q + ahead * step_t, 0, 2);
          x = load_as<S>(p), y = load_as<T>(q);
        } else {
          const char* p = from_s + (d + j) * step_s + v * along_s * s_size;
          const char* q = from_t + (d + j) * step_t + v * along_t * t_size;
          x = load_lanes<S>(p, along_s, at.count - v), y = load_lanes<T>(q, along_t, at.count - v);
          const I inside = load_int(strip.inside + v);
          x = inside != 0 ? x : V{}, y = inside != 0 ? y : V{};
          if (call.scale) {
            x = (x - call.mean[d + j]) * call.scale[d + j];
            y = (y - call.mean[d + j]) * call.scale[d + j];
          }
        }
        store(strip.s + (d + j) * strip.pitch + v, x);
        store(strip.t + (d + j) * strip.pitch + v, y);
        if constexpr (Centre) {
          ss += x, tt += y;
        } else {
          ss += x * x, tt += y * y, st += x * y;
        }
        if constexpr (E != Elements::none) value += value_of<E>(x - y, pull_of<E>(x - y, beta));
      }
      store(strip.ss + v, ss), store(strip.tt + v, tt), store(strip.st + v, st);
      if constexpr (E != Elements::none) store(strip.value + v, value);
    }
  };
  int64_t d = 0;
  for (; d + kTogether <= strip.depth; d += kTogether) take.template operator()<kTogether>(d);
  for (; d < strip.depth; ++d) take.template operator()<1>(d);
}

template <Dtype S, Dtype T>
void load_strips(const Strip& strip, const FeatureCall& call, const Place& at, bool masked) {
  const bool plain = !masked && call.scale == nullptr && call.student.stride_b == 1 &&
                     call.teacher.stride_b == 1;
  const int64_t whole = plain ? at.count / W * W : 0;
  const auto load_as_asked = [&]<Elements E, bool Centre>() {
    if (whole > 0) load_lanes_of<S, T, true, E, Centre>(strip, call, at, 0, whole);
    if (whole < strip.width) load_lanes_of<S, T, false, E, Centre>(strip, call, at, whole, strip.width);
  };
  if (call.normalise == Normalise::layer) return load_as_asked.template operator()<Elements::none, true>();
  with_elements(scaled(call) ? Elements::none : call.elements,
                [&]<Elements E>() { load_as_asked.template operator()<E, false>(); });
}

void load_strips_as(const Strip& strip, const FeatureCall& call, const Place& at, bool masked) {
  with_dtype(call.student.dtype, [&]<Dtype S>() {
    with_dtype(call.teacher.dtype, [&]<Dtype T>() { load_strips<S, T>(strip, call, at, masked); });
  });
}

template <Elements E, bool Alone, Dtype D>
void write(const Strip& strip, const FeatureCall& call, const Place& at) {
  constexpr int size = size_of<D>;
  char* to = address(call.gradient, at);
  const int64_t plane = call.gradient.stride_class * size, along = call.gradient.stride_b;
  const bool streaming = D == Dtype::float32 && call.streaming && along == 1 &&
                         (uintptr_t)to % (4 * W) == 0 && plane % (4 * W) == 0;
  for (int64_t d = 0; d < strip.depth; ++d, to += plane) {
    for (int64_t v = 0; v < at.count; v += W) {
      const V g = gradient_at<E, Alone>(strip, call, d, v);
      if (streaming && at.count - v >= W) {
        stream((float*)to + v, g);
      } else {
        store_lanes<D>(to + v * along * size, along, at.count - v, g);
      }
    }
  }
}

template <Elements E>
void write_as(const Strip& strip, const FeatureCall& call, const Place& at) {
  with_dtype(call.gradient.dtype, [&]<Dtype D>() {
    if (E != Elements::none && elements_alone(call)) {
      write<E, true, D>(strip, call, at);
    } else {
      write<E, false, D>(strip, call, at);
    }
  });
}

void clear(const FeatureCall& call, const Place& at) {
  const int64_t size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  char* to = address(call.gradient, at);
  for (int64_t c = 0; c < call.channels; ++c, to += call.gradient.stride_class * size) {
    for (int64_t i = 0; i < at.count; ++i) memset(to + i * call.gradient.stride_b * size, 0, size);
  }
}

}  // namespace

// Tasks [begin, end), each one strip of call.rows positions.
void feature_down(const FeatureCall& call, int64_t begin, int64_t end, float* memory) {
  const Strip strip = make_strip(memory, call.channels, call.rows);
  const int64_t strips = (call.size_b + call.rows - 1) / call.rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t line = task / strips;
    Place at = {line / call.size_a, line % call.size_a, task % strips * call.rows, call.rows};
    if (at.b + at.count > call.size_b) at.count = call.size_b - at.b;
    const int64_t row = line * call.size_b + at.b;
    call.task_losses[task] = call.task_similarities[task] = 0;
    const int64_t counting = describe(strip, call, row, at.count);
    if (counting == 0) {
      if (call.gradient.data) clear(call, at);
      if (call.row_losses) memset(call.row_losses + row, 0, at.count * sizeof(float));
      continue;
    }
    load_strips_as(strip, call, at, counting < at.count);
    if (call.normalise == Normalise::layer) centre(strip);
    with_elements(call.elements, [&]<Elements E>() {
      settle_strip<E>(strip, call);
      if (call.gradient.data) write_as<E>(strip, call, at);
    });
    const auto [loss, similarity] = add_up(strip, call, row, at.count);
    call.task_losses[task] = loss;
    call.task_similarities[task] = similarity;
  }
  if (call.streaming) end_of_streaming();
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
