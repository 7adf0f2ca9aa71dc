// The distillation loss of rows whose classes lie contiguous: [N, C], or channels last.
//
// A row is one strip (see strip.h): its logits are converted into a float buffer that stays
// in the first-level cache (8 C bytes), and all passes run there. Memory sees each logit once and
// each gradient once; streaming stores keep the gradient from being fetched before it is written.
// Floor: the memory stream of two reads and one write, as the two exponentials of an element take
// less than its 12 bytes of traffic. The next row is prefetched while this one is computed.
#include "common/distill_loss/passes.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

INLINE int64_t offset_of(const DistillCall& call, const Logits& logits, int64_t row) {
  const int64_t b = row % call.size_b, rest = row / call.size_b;
  return rest / call.size_a * logits.stride_n + rest % call.size_a * logits.stride_a +
         b * logits.stride_b;
}

// Pass 1: into the buffer, with the maximum and its first class.
template <Dtype D>
void load_row(const Strip& strip, const char* from, int64_t stride, float* buffer, float fill,
              float* tops, int32_t* args) {
  constexpr int size = size_of<D>;
  const int64_t whole = stride == 1 ? strip.classes / W * W : 0;
  V top = splat(-__builtin_inff());
  I arg = I{};
  for (int64_t c = 0; c < whole; c += W) {
    V x = load_as<D>(from + c * size);
    store(buffer + c, x);
    measure(x, splat_int((int32_t)c) + iota(), top, arg);
  }
  for (int64_t c = whole; c < strip.classes; c += W) {
    char elements[W * size];
    const int64_t here = strip.classes - c < W ? strip.classes - c : W;
    for (int64_t i = 0; i < here; ++i) {
      memcpy(elements + i * size, from + (c + i) * stride * size, size);
    }
    V x = load_as<D>(elements);
    for (int64_t i = here; i < W; ++i) x[i] = fill;
    store(buffer + c, x);
    measure(x, splat_int((int32_t)c) + iota(), top, arg);
  }
  store_measured<true>(top, arg, tops, args);
}

void load_row_as(Dtype dtype, const Strip& strip, const char* from, int64_t stride, float* buffer,
                 float fill, float* tops, int32_t* args) {
  with_dtype(dtype, [&]<Dtype D>() {
    load_row<D>(strip, from, stride, buffer, fill, tops, args);
  });
}

template <Objective O, bool CrossEntropy, Dtype D>
void store_row(const Strip& strip, const DistillCall& call, char* to) {
  constexpr int size = size_of<D>;
  const int64_t stride = call.gradient.stride_class;
  const int64_t whole = stride == 1 ? strip.classes / W : 0;
  const bool streaming = D == Dtype::float32 && call.streaming && (uintptr_t)to % (4 * W) == 0;
  for (int64_t d = 0; d < whole; ++d) {
    V g = gradient<O, true, CrossEntropy>(strip, d, 0);
    if (streaming) {
      stream((float*)to + d * W, g);
    } else {
      store_as<D>(to + d * W * size, g);
    }
  }
  for (int64_t d = whole; d < strip.depth; ++d) {
    char elements[W * size];
    store_as<D>(elements, gradient<O, true, CrossEntropy>(strip, d, 0));
    const int64_t here = strip.classes - d * W < W ? strip.classes - d * W : W;
    for (int64_t i = 0; i < here; ++i) {
      memcpy(to + (d * W + i) * stride * size, elements + i * size, size);
    }
  }
}

// cwd: the "classes" are the pixels of a channel, and those outside the mask are no class.
void mask_classes(const Strip& strip, const DistillCall& call, int64_t row) {
  const bool* mask = call.class_mask + row / call.rows_per_sample * call.classes;
  for (int64_t c = 0; c < call.classes; ++c) {
    strip.s[c] = mask[c] ? strip.s[c] : NO_CLASS;
    strip.t[c] = mask[c] ? strip.t[c] : -__builtin_inff();
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

// Tasks [begin, end), each of call.pixels rows. `memory` holds workspace_floats() floats.
void distill_across(const DistillCall& call, int64_t begin, int64_t end, float* memory) {
  const int64_t depth = (call.classes + W - 1) / W;
  Strip strip = make_strip(memory, depth, W, call.classes, call.cross_entropy);
  const int64_t rows = call.size_n * call.size_a * call.size_b;
  const int64_t s_size = call.student.dtype == Dtype::float32 ? 4 : 2;
  const int64_t t_size = call.teacher.dtype == Dtype::float32 ? 4 : 2;
  const int64_t g_size = call.gradient.dtype == Dtype::float32 ? 4 : 2;
  strip.bytes_s = W * s_size, strip.bytes_t = W * t_size;
  for (int64_t task = begin; task < end; ++task) {
    double loss = 0;
    int64_t agreements = 0;
    const int64_t last = (task + 1) * call.pixels < rows ? (task + 1) * call.pixels : rows;
    for (int64_t row = task * call.pixels; row < last; ++row) {
      char* to = call.gradient.data
                     ? call.gradient.data + offset_of(call, call.gradient, row) * g_size
                     : nullptr;
      if (!describe_row(strip, call, row) || all_masked(call, row)) {
        if (to) clear_row(call, to);
        if (call.row_losses) call.row_losses[row] = 0;
        continue;
      }
      const char* s = call.student.data + offset_of(call, call.student, row) * s_size;
      const char* t = call.teacher.data + offset_of(call, call.teacher, row) * t_size;
      load_row_as(call.student.dtype, strip, s, call.student.stride_class, strip.s, NO_CLASS,
                  strip.of.max_s, strip.of.arg_s);
      load_row_as(call.teacher.dtype, strip, t, call.teacher.stride_class, strip.t,
                  -__builtin_inff(), strip.of.max_t, strip.of.arg_t);
      const int64_t next = row + 1 < last ? row + 1 : row;
      strip.next_s = call.student.data + offset_of(call, call.student, next) * s_size;
      strip.next_t = call.teacher.data + offset_of(call, call.teacher, next) * t_size;
      if (call.class_mask) {
        mask_classes(strip, call, row);
        measure_buffer<true>(strip, strip.s, strip.of.max_s, strip.of.arg_s);
        measure_buffer<true>(strip, strip.t, strip.of.max_t, strip.of.arg_t);
      }
      agreements += strip.of.arg_s[0] == strip.of.arg_t[0];
      settle_strip<true>(strip, call);
      if (call.row_losses) {
        call.row_losses[row] = strip.of.loss[0];
      } else {
        loss += strip.of.loss[0];
      }
      if (to == nullptr) continue;
      with_objective(call, [&]<Objective O, bool CrossEntropy>() {
        with_dtype(call.gradient.dtype, [&]<Dtype G>() {
          store_row<O, CrossEntropy, G>(strip, call, to);
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
