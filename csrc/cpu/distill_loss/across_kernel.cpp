// The distillation loss of rows whose classes lie contiguous: [N, C], or channels last.
//
// A strip is as many rows as fit (strip.h): their logits are converted into a float buffer that stays
// in the first-level cache (8 C bytes a row), and all passes run there. Memory sees each logit once and
// each gradient once; streaming stores keep the gradient from being fetched before it is written.
// Floor: the memory stream of two reads and one write, as the two exponentials of an element take
// less than its 12 bytes of traffic. The next rows are prefetched while these are computed.
#include "common/distill_loss/passes.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

INLINE int64_t offset_of(const DistillCall& call, const Logits& logits, int64_t row) {
  const int64_t b = row % call.size_b, rest = row / call.size_b;
  return rest / call.size_a * logits.stride_n + rest % call.size_a * logits.stride_a +
         b * logits.stride_b;
}

// Pass 1: row `v` into the buffer, with its maximum and first class.
template <Dtype D>
void load_row(const Strip strip, const char* from, int64_t stride, int64_t v, float* buffer,
              float fill, float* tops, int32_t* args) {
  constexpr int size = size_of<D>;
  const int64_t whole = stride == 1 ? strip.classes / W * W : 0;
  V top = splat(-__builtin_inff());
  I arg = I{};
  buffer += v * strip.pitch;
  for (int64_t c = 0; c < whole; c += W) {
    V x = load_as<D>(from + c * size);
    store(buffer + c, x);
    measure(x, splat_int((int32_t)c) + iota(), top, arg);
  }
  for (int64_t c = whole; c < strip.classes; c += W) {
    const I index = splat_int((int32_t)c) + iota();
    V x = load_lanes<D>(from + c * stride * size, stride, strip.classes - c);
    x = index < (int32_t)strip.classes ? x : splat(fill);
    store(buffer + c, x);
    measure(x, index, top, arg);
  }
  keep_measured<true>(top, arg, tops, args, v);
}

template <Objective O, bool CrossEntropy, Dtype D>
void store_row(const Strip strip, const DistillCall& call, int64_t v, char* to) {
  constexpr int size = size_of<D>;
  const int64_t stride = call.gradient.stride_class;
  const int64_t whole = stride == 1 ? strip.classes / W : 0;
  const bool streaming = D == Dtype::float32 && call.streaming && (uintptr_t)to % (4 * W) == 0;
  for (int64_t d = 0; d < whole; ++d) {
    V g = gradient<O, true, CrossEntropy>(strip, d, v);
    if (streaming) {
      stream((float*)to + d * W, g);
    } else {
      store_as<D>(to + d * W * size, g);
    }
  }
  for (int64_t d = whole; d < strip.depth; ++d) {
    V g = gradient<O, true, CrossEntropy>(strip, d, v);
    store_lanes<D>(to + d * W * stride * size, stride, strip.classes - d * W, g);
  }
}

// cwd: the "classes" are the pixels of a channel, and those outside the mask are no class.
void mask_classes(const Strip& strip, const DistillCall& call, int64_t row, int64_t v) {
  const bool* mask = call.class_mask + row / call.rows_per_sample * call.classes;
  float *s = strip.s + v * strip.pitch, *t = strip.t + v * strip.pitch;
  for (int64_t c = 0; c < call.classes; ++c) {
    s[c] = mask[c] ? s[c] : NO_CLASS;
    t[c] = mask[c] ? t[c] : -__builtin_inff();
  }
}

bool all_masked(const DistillCall& call, int64_t row) {
  if (call.class_mask == nullptr) return false;
  const bool* mask = call.class_mask + row / call.rows_per_sample * call.classes;
  return memchr(mask, 1, call.classes) == nullptr;
}

void clear_row(const DistillCall& call, char* to) {
  const int64_t size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  for (int64_t c = 0; c < call.classes; ++c) memset(to + c * call.gradient.stride_class * size, 0, size);
}

}  // namespace

// Tasks [begin, end), each of call.pixels rows. `memory`: strips_across().
void distill_across(const DistillCall& call, int64_t begin, int64_t end, float* memory) {
  Strip strip = make_strip<true>(memory, call);
  const int64_t room = strip.width, rows = call.size_n * call.size_a * call.size_b;
  const auto at = [&](const Logits& logits, int64_t row) {
    return logits.data + offset_of(call, logits, row) * (logits.dtype == Dtype::float32 ? 4 : 2);
  };
  const auto load = [&](const Logits& logits, int64_t row, int64_t v, float* buffer, float fill,
                        float* tops, int32_t* args) {
    with_dtype(logits.dtype, [&]<Dtype D>() {
      load_row<D>(strip, at(logits, row), logits.stride_class, v, buffer, fill, tops, args);
    });
  };
  strip.vector_s = W * (call.student.dtype == Dtype::float32 ? 4 : 2);
  strip.vector_t = W * (call.teacher.dtype == Dtype::float32 ? 4 : 2);
  strip.bytes_s = call.student.stride_b * strip.vector_s / W;
  strip.bytes_t = call.teacher.stride_b * strip.vector_t / W;
  for (int64_t task = begin; task < end; ++task) {
    double loss = 0;
    int64_t agreements = 0, row = task * call.pixels;
    const int64_t last = row + call.pixels < rows ? row + call.pixels : rows;
    while (row < last) {
      // As many rows as there is room for; those that do not count are passed over.
      int64_t in_strip[W];
      for (strip.width = 0; row < last && strip.width < room; ++row) {
        if (describe_row(strip, call, row, strip.width) && !all_masked(call, row)) {
          in_strip[strip.width++] = row;
          continue;
        }
        if (call.gradient.data) clear_row(call, at(call.gradient, row));
        if (call.row_losses) call.row_losses[row] = 0;
      }
      if (strip.width == 0) continue;
      for (int64_t v = 0; v < strip.width; ++v) {
        load(call.student, in_strip[v], v, strip.s, NO_CLASS, strip.of.max_s, strip.of.arg_s);
        load(call.teacher, in_strip[v], v, strip.t, -__builtin_inff(), strip.of.max_t, strip.of.arg_t);
        if (call.class_mask) mask_classes(strip, call, in_strip[v], v);
      }
      if (call.class_mask) {
        measure_buffer<true>(strip, strip.s, strip.of.max_s, strip.of.arg_s);
        measure_buffer<true>(strip, strip.t, strip.of.max_t, strip.of.arg_t);
      }
      const int64_t next = row < last ? row : in_strip[0];
      strip.next_s = at(call.student, next), strip.next_t = at(call.teacher, next);
      settle_strip<true, true>(strip, call);
      add_up_rows(strip, call, in_strip, loss, agreements);
      if (call.gradient.data == nullptr) continue;
      with_objective(call, [&]<Objective O, bool CrossEntropy>() {
        with_dtype(call.gradient.dtype, [&]<Dtype G>() {
          for (int64_t v = 0; v < strip.width; ++v) {
            store_row<O, CrossEntropy, G>(strip, call, v, at(call.gradient, in_strip[v]));
          }
        });
      });
    }
    call.task_losses[task] = loss;
    call.task_agreements[task] = agreements;
  }
  if (call.streaming) end_of_streaming();
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
