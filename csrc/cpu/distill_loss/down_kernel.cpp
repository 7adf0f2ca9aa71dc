// The distillation loss of dense logits [N, C, H, W]: pixels lie contiguous, classes far apart.
//
// A task is one strip of pixels with all their classes. Reading streams along the pixels of one
// class after the other and copies them into a float buffer: planes whose distance is a power of two
// fall into the same cache sets, and a second look at them would go to memory again. The buffers
// (8 bytes an element) fit the second-level cache; all passes but the first and the last run there.
// Meanwhile the next strip is fetched into that cache: memory works during the arithmetic.
// Floor: the memory stream of two reads and one write.
#include "common/distill_loss/passes.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

struct Place {
  int64_t n, a, b, count;  // the strip's first position, and how many pixels it has
};

INLINE char* address(const Logits& logits, const Place& at) {
  const int64_t size = logits.dtype == Dtype::float32 ? 4 : 2;
  return logits.data +
         (at.n * logits.stride_n + at.a * logits.stride_a + at.b * logits.stride_b) * size;
}

// Tensors that are not contiguous along pixels are turned in squares of W classes and W pixels. Calls
// use(c, here) for `here` classes from c on; the last square takes W classes, too, where there are W:
// some of them once more, which costs less than to pick single ones.
template <class Use>
INLINE void for_all_squares(int64_t classes, const Use& use) {
  for (int64_t c = 0; c < classes; c += W) {
    const int64_t from = c + W <= classes || classes < W ? c : classes - W;
    use(from, classes - from < W ? classes - from : W);
  }
}

// Pass 1: into the buffer, with maximum and first class of each pixel. CLASSES planes at once, so
// that the running maxima are read and written once for all of them.
template <Dtype D, int CLASSES, bool Masked>
INLINE void load_planes(const Strip strip, const char* from, int64_t stride, int64_t ahead,
                        int64_t count, int64_t d, float* buffer, float* tops, int32_t* args) {
  constexpr int size = size_of<D>;
  const int64_t plane = stride * size, pitch = strip.pitch, whole = count / W * W;
  from += d * plane, buffer += d * pitch;
  const auto measured = [&](int64_t v, auto load_plane) __attribute__((always_inline)) {
    V top = load(tops + v);
    I arg = load_int(args + v);
#pragma GCC unroll 8
    for (int j = 0; j < CLASSES; ++j) {
      V x = load_plane(from + j * plane + v * size);
      if constexpr (Masked) x = load_int(strip.of.inside + v) != 0 ? x : V{};
      store(buffer + j * pitch + v, x);
      measure(x, splat_int((int32_t)(d + j)), top, arg);
    }
    store(tops + v, top), store_int(args + v, arg);
  };
  for (int64_t v = 0; v < whole; v += W) {
    measured(v, [&](const char* p) __attribute__((always_inline)) {
      __builtin_prefetch(p + ahead * plane, 0, 3);
      return load_as<D>(p);
    });
  }
  for (int64_t v = whole; v < strip.width; v += W) {
    measured(v, [&](const char* p) __attribute__((always_inline)) {
      return v < count ? load_lanes<D>(p, 1, count - v) : V{};
    });
  }
}

template <Dtype D, bool Masked>
void load_strip(const Strip strip, const Logits& logits, const Place& at, float* buffer,
                float* tops, int32_t* args) {
  constexpr int size = size_of<D>;
  const char* from = address(logits, at);
  const int64_t stride = logits.stride_class;
  if (logits.stride_b == 1) {
    for (int64_t v = 0; v < strip.width; v += W) {
      store(tops + v, splat(-__builtin_inff())), store_int(args + v, I{});
    }
    int64_t d = 0;
    for (; d + 4 <= strip.depth; d += 4) {
      const int64_t ahead = d + 12 <= strip.depth ? 8 : 0;
      load_planes<D, 4, Masked>(strip, from, stride, ahead, at.count, d, buffer, tops, args);
    }
    for (; d < strip.depth; ++d) {
      load_planes<D, 1, Masked>(strip, from, stride, 0, at.count, d, buffer, tops, args);
    }
    return;
  }
  for (int64_t v = 0; v < strip.width; v += W) {
    for_all_squares(strip.classes, [&](int64_t c, int64_t here) __attribute__((always_inline)) {
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const char* p = from + ((v + i) * logits.stride_b + c * stride) * size;
        square[i] = strip.of.inside[v + i] ? load_lanes<D>(p, stride, here) : V{};
      }
      transpose(square);
      for (int64_t j = 0; j < here; ++j) store(buffer + (c + j) * strip.pitch + v, square[j]);
    });
  }
  measure_buffer<false>(strip, buffer, tops, args);
}

void load_strip_as(const Strip& strip, const Logits& logits, const Place& at, bool masked,
                   float* buffer, float* tops, int32_t* args) {
  with_dtype(logits.dtype, [&]<Dtype D>() {
    if (masked) {
      load_strip<D, true>(strip, logits, at, buffer, tops, args);
    } else {
      load_strip<D, false>(strip, logits, at, buffer, tops, args);
    }
  });
}

template <Dtype D>
void store_strip(const Strip strip, const DistillCall& call, const Place& at) {
  constexpr int size = size_of<D>;
  const Logits& logits = call.gradient;
  char* to = address(logits, at);
  const int64_t plane = logits.stride_class * size;
  if (logits.stride_b == 1) {
    const bool streaming = D == Dtype::float32 && call.streaming && (uintptr_t)to % (4 * W) == 0 &&
                           plane % (4 * W) == 0;
    const int64_t whole = at.count / W * W;
    with_objective(call, [&]<Objective O, bool CrossEntropy>() {
      for (int64_t d = 0; d < strip.depth; ++d, to += plane) {
        for (int64_t v = 0; v < whole; v += W) {
          V g = gradient<O, false, CrossEntropy>(strip, d, v);
          if (streaming) {
            stream((float*)to + v, g);
          } else {
            store_as<D>(to + v * size, g);
          }
        }
        if (whole < at.count) {
          V g = gradient<O, false, CrossEntropy>(strip, d, whole);
          store_lanes<D>(to + whole * size, 1, at.count - whole, g);
        }
      }
    });
    return;
  }
  // Not contiguous along pixels: the gradient first takes the place of the student in the buffer.
  with_objective(call, [&]<Objective O, bool CrossEntropy>() {
    for (int64_t d = 0; d < strip.depth; ++d) {
      for (int64_t v = 0; v < strip.width; v += W) {
        store(strip.s + d * strip.pitch + v, gradient<O, false, CrossEntropy>(strip, d, v));
      }
    }
  });
  for (int64_t v = 0; v < at.count; v += W) {
    const int64_t count = at.count - v < W ? at.count - v : W;
    for_all_squares(strip.classes, [&](int64_t c, int64_t here) __attribute__((always_inline)) {
      V square[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) square[j] = j < here ? load(strip.s + (c + j) * strip.pitch + v) : V{};
      transpose(square);
      for (int64_t i = 0; i < count; ++i) {
        char* p = to + ((v + i) * logits.stride_b + c * logits.stride_class) * size;
        store_lanes<D>(p, logits.stride_class, here, square[i]);
      }
    });
  }
}

void clear_strip(const DistillCall& call, const Place& at) {
  const int64_t size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  char* to = address(call.gradient, at);
  for (int64_t c = 0; c < call.classes; ++c, to += call.gradient.stride_class * size) {
    for (int64_t i = 0; i < at.count; ++i) memset(to + i * call.gradient.stride_b * size, 0, size);
  }
}

INLINE Place place_of(const DistillCall& call, int64_t task, int64_t strips) {
  const int64_t line = task / strips;
  Place at = {line / call.size_a, line % call.size_a, task % strips * call.pixels, call.pixels};
  if (at.b + at.count > call.size_b) at.count = call.size_b - at.b;
  return at;
}

// What is fetched during the arithmetic of this strip: nothing where pixels lie apart, as each would
// be a line.
void fetch_from(Strip& strip, const DistillCall& call, const Place& next) {
  strip.lines_s = strip.lines_t = 0;
  if (call.student.stride_b != 1 || call.teacher.stride_b != 1) return;
  const auto fetch = [&](const Logits& logits, const char*& from, int64_t& bytes, int64_t& lines) {
    const int64_t size = logits.dtype == Dtype::float32 ? 4 : 2;
    from = address(logits, next), bytes = logits.stride_class * size;
    lines = (next.count * size + 63) / 64;
  };
  fetch(call.student, strip.next_s, strip.bytes_s, strip.lines_s);
  fetch(call.teacher, strip.next_t, strip.bytes_t, strip.lines_t);
}

}  // namespace

// Tasks [begin, end), each one strip of call.pixels pixels. `memory`: strips_down().
void distill_down(const DistillCall& call, int64_t begin, int64_t end, float* memory) {
  Strip strip = make_strip<false>(memory, call);
  const int64_t strips = (call.size_b + call.pixels - 1) / call.pixels;
  for (int64_t task = begin; task < end; ++task) {
    const Place at = place_of(call, task, strips);
    const int64_t row = task / strips * call.size_b + at.b;
    if (task + 1 < end) {
      fetch_from(strip, call, place_of(call, task + 1, strips));
    } else {
      strip.lines_s = 0;
    }
    call.task_losses[task] = 0;
    call.task_agreements[task] = 0;
    const int64_t counting = describe_rows(strip, call, row, at.count);
    if (counting == 0) {
      if (call.gradient.data) clear_strip(call, at);
      if (call.row_losses) memset(call.row_losses + row, 0, at.count * sizeof(float));
      continue;
    }
    const bool masked = counting < at.count;
    load_strip_as(strip, call.student, at, masked, strip.s, strip.of.max_s, strip.of.arg_s);
    load_strip_as(strip, call.teacher, at, masked, strip.t, strip.of.max_t, strip.of.arg_t);
    int64_t agreements = 0;
    for (int64_t i = 0; i < at.count; ++i) {
      agreements += strip.of.inside[i] && strip.of.arg_s[i] == strip.of.arg_t[i];
    }
    call.task_agreements[task] = agreements;
    settle_strip<false, true>(strip, call);
    if (call.row_losses) {
      for (int64_t i = 0; i < at.count; ++i) {
        call.row_losses[row + i] = strip.of.inside[i] ? strip.of.loss[i] : 0.0f;
      }
    } else {
      double loss = 0;
      for (int64_t i = 0; i < at.count; ++i) loss += strip.of.inside[i] ? strip.of.loss[i] : 0.0f;
      call.task_losses[task] = loss;
    }
    if (call.gradient.data == nullptr) continue;
    with_dtype(call.gradient.dtype, [&]<Dtype G>() { store_strip<G>(strip, call, at); });
  }
  if (call.streaming) end_of_streaming();
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
