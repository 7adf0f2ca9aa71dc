// The distillation loss at full resolution of logits at low resolution; the full-resolution logits
// exist for one pixel at a time.
//
// A task is a band of student rows and all output rows that lie at or below one of them and above
// the next. Low-resolution rows are turned to [pixel, class] as they are reached; then bilinear
// interpolation is arithmetic on whole vectors of classes whatever the ratio, first down (once for
// each output row), then along. Each output pixel is one row across (strip.h), whose gradient
// goes back the same two steps. The first row of a band and the one below its last get their
// gradient from two bands: both are handed to the caller, who adds them in a fixed order.
// Floor: two exponentials an output element; memory sees the low resolution only.
#include "common/distill_loss/passes.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// Rules a class out, and survives interpolation, where -inf times a weight of 0 would not.
constexpr float RULED_OUT = -1e38f;

template <Dtype D>
void read_row(const Logits& logits, int64_t n, int64_t y, int64_t width, int64_t classes,
              int64_t padded, bool teacher, float* to) {
  constexpr int size = size_of<D>;
  const char* from = logits.data + (n * logits.stride_n + y * logits.stride_a) * size;
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = classes; c < padded; ++c) to[x * padded + c] = teacher ? RULED_OUT : NO_CLASS;
  }
  // W pixels of one class are contiguous in NCHW, W classes of one pixel in channels last.
  for (int64_t x0 = 0; x0 < width; x0 += W) {
    const int64_t count = width - x0 < W ? width - x0 : W;
    for (int64_t c = 0; c < classes; ++c) {
      const char* p = from + (x0 * logits.stride_b + c * logits.stride_class) * size;
      V value;
      if (logits.stride_b == 1 && count == W) {
        value = load_as<D>(p);
      } else {
        char elements[W * size] = {};
        for (int64_t i = 0; i < count; ++i) {
          memcpy(elements + i * size, p + i * logits.stride_b * size, size);
        }
        value = load_as<D>(elements);
      }
      if (teacher) value = max(splat(RULED_OUT), value);
      for (int64_t i = 0; i < count; ++i) to[(x0 + i) * padded + c] = value[i];
    }
  }
}

void read_row_as(const Logits& logits, int64_t n, int64_t y, int64_t width, int64_t classes,
                 int64_t padded, bool teacher, float* to) {
  with_dtype(logits.dtype, [&]<Dtype D>() {
    read_row<D>(logits, n, y, width, classes, padded, teacher, to);
  });
}

template <Dtype D>
void write_row(const Logits& logits, int64_t n, int64_t y, int64_t width, int64_t classes,
               int64_t padded, const float* from) {
  constexpr int size = size_of<D>;
  char* to = logits.data + (n * logits.stride_n + y * logits.stride_a) * size;
  for (int64_t x0 = 0; x0 < width; x0 += W) {
    const int64_t count = width - x0 < W ? width - x0 : W;
    for (int64_t c = 0; c < classes; ++c) {
      V value = V{};
      for (int64_t i = 0; i < count; ++i) value[i] = from[(x0 + i) * padded + c];
      char elements[W * size];
      store_as<D>(elements, value);
      char* p = to + (x0 * logits.stride_b + c * logits.stride_class) * size;
      for (int64_t i = 0; i < count; ++i) {
        memcpy(p + i * logits.stride_b * size, elements + i * size, size);
      }
    }
  }
}

void write_row_as(const Logits& logits, int64_t n, int64_t y, int64_t width, int64_t classes,
                  int64_t padded, const float* from) {
  with_dtype(logits.dtype, [&]<Dtype D>() {
    write_row<D>(logits, n, y, width, classes, padded, from);
  });
}

// Two neighbouring low-resolution rows as [pixel, class], and their mixture for one output row.
struct Rows {
  const Logits* logits;
  int64_t height, width, padded;
  bool teacher;
  float *upper, *lower, *mixed;
  int64_t at;  // which row `upper` is; `lower` is the next one

  void reach(int64_t n, int64_t y, int64_t classes) {
    if (y == at) return;
    if (y == at + 1) {
      float* previous = upper;
      upper = lower, lower = previous;
    } else {
      read_row_as(*logits, n, y, width, classes, padded, teacher, upper);
    }
    at = y;
    if (y + 1 < height) read_row_as(*logits, n, y + 1, width, classes, padded, teacher, lower);
  }

  void mix(float second) {
    if (second == 0) {
      memcpy(mixed, upper, width * padded * sizeof(float));
      return;
    }
    for (int64_t i = 0; i < width * padded; i += W) {
      V a = load(upper + i), b = load(lower + i);
      store(mixed + i, a + second * (b - a));
    }
  }
};

Rows make_rows(const Logits& logits, int64_t height, int64_t width, int64_t padded, bool teacher,
               float*& memory) {
  Rows rows = {&logits, height, width, padded, teacher, nullptr, nullptr, nullptr, -2};
  rows.upper = memory, rows.lower = memory + width * padded, rows.mixed = memory + 2 * width * padded;
  memory += 3 * width * padded;
  return rows;
}

// One output pixel of student or teacher into its buffer, with maximum and first class.
template <bool Teacher>
INLINE void load_pixel(const Strip& strip, const Rows& rows, int64_t first, float second,
                       float* buffer, float* tops, int32_t* args) {
  const float* a = rows.mixed + first * rows.padded;
  const float* b = second != 0 ? a + rows.padded : a;
  V top = splat(-__builtin_inff());
  I arg = I{};
  for (int64_t d = 0; d < strip.depth; ++d) {
    V left = load(a + d * W), x = left + second * (load(b + d * W) - left);
    if constexpr (Teacher) x = x < NO_CLASS ? splat(-__builtin_inff()) : x;
    store(buffer + d * W, x);
    measure(x, class_at<true>(d), top, arg);
  }
  store_measured<true>(top, arg, tops, args);
}

}  // namespace

// The padded number of classes is that of the widest vectors, on every instruction set.
void distill_upsampled(const UpsampledCall& up, int64_t begin, int64_t end, float* memory) {
  const DistillCall& call = up.call;
  const int64_t padded = (call.classes + 15) / 16 * 16, line = up.student_width * padded;
  const Strip strip =
      make_strip(memory, (call.classes + W - 1) / W, W, call.classes, call.cross_entropy);
  memory += 3 * padded + 20 * 16;
  Rows student = make_rows(call.student, up.student_height, up.student_width, padded, false, memory);
  Rows teacher = make_rows(call.teacher, up.teacher_height, up.teacher_width, padded, true, memory);
  const bool wanted = call.gradient.data != nullptr;
  float* along = memory;            // the gradient of one output row, brought back along the row
  float* upper = memory + line;     // of the student row that is being left
  float* lower = memory + 2 * line; // and of the next one

  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / up.bands, top = task % up.bands * up.band;
    const int64_t bottom = top + up.band < up.student_height ? top + up.band : up.student_height;
    float* edges = wanted ? up.edges + task * 2 * line : nullptr;
    student.at = teacher.at = -2;
    if (wanted) memset(along, 0, 3 * line * sizeof(float));
    double loss = 0;
    int64_t agreements = 0, current = top;
    const auto leave = [&](int64_t row) {
      if (row == top) {
        memcpy(edges, upper, line * sizeof(float));
      } else {
        write_row_as(call.gradient, n, row, up.student_width, call.classes, padded, upper);
      }
      float* previous = upper;
      upper = lower, lower = previous;
      memset(lower, 0, line * sizeof(float));
    };
    int64_t y = 0;
    while (y < up.height && up.student_y.first[y] < top) ++y;
    for (; y < up.height && up.student_y.first[y] < bottom; ++y) {
      const int64_t first_y = up.student_y.first[y];
      const float second_y = up.student_y.second[y];
      for (; wanted && current < first_y; ++current) leave(current);
      student.reach(n, first_y, call.classes), student.mix(second_y);
      teacher.reach(n, up.teacher_y.first[y], call.classes), teacher.mix(up.teacher_y.second[y]);
      for (int64_t x = 0; x < up.width; ++x) {
        const int64_t row = (n * up.height + y) * up.width + x;
        if (!describe_row(strip, call, row)) {
          if (call.row_losses) call.row_losses[row] = 0;
          continue;
        }
        const int64_t first = up.student_x.first[x];
        const float second = up.student_x.second[x];
        load_pixel<false>(strip, student, first, second, strip.s, strip.of.max_s, strip.of.arg_s);
        load_pixel<true>(strip, teacher, up.teacher_x.first[x], up.teacher_x.second[x], strip.t,
                         strip.of.max_t, strip.of.arg_t);
        agreements += strip.of.arg_s[0] == strip.of.arg_t[0];
        settle_strip<true>(strip, call);
        if (call.row_losses) {
          call.row_losses[row] = strip.of.loss[0];
        } else {
          loss += strip.of.loss[0];
        }
        if (!wanted) continue;
        float* left = along + first * padded;
        float* right = second != 0 ? left + padded : left;
        with_objective(call, [&]<Objective O, bool CrossEntropy>() {
          for (int64_t d = 0; d < strip.depth; ++d) {
            V g = gradient<O, true, CrossEntropy>(strip, d, 0), part = second * g;
            store(left + d * W, load(left + d * W) + (g - part));
            store(right + d * W, load(right + d * W) + part);
          }
        });
      }
      for (int64_t i = 0; wanted && i < line; i += W) {
        V g = load(along + i), part = second_y * g;
        store(upper + i, load(upper + i) + (g - part));
        if (second_y != 0) store(lower + i, load(lower + i) + part);
        store(along + i, V{});
      }
    }
    for (; wanted && current < bottom; ++current) leave(current);
    if (wanted) memcpy(edges + line, upper, line * sizeof(float));
    call.task_losses[task] = loss;
    call.task_agreements[task] = agreements;
  }
}

// The first row of each band: its own share, and the one of the band above. Tasks as before.
void distill_upsampled_edges(const UpsampledCall& up, int64_t begin, int64_t end) {
  const DistillCall& call = up.call;
  const int64_t padded = (call.classes + 15) / 16 * 16, line = up.student_width * padded;
  for (int64_t task = begin; task < end; ++task) {
    float* own = up.edges + task * 2 * line;
    if (task % up.bands != 0) {
      const float* above = own - line;
      for (int64_t i = 0; i < line; i += W) store(own + i, load(own + i) + load(above + i));
    }
    write_row_as(call.gradient, task / up.bands, task % up.bands * up.band, up.student_width,
                 call.classes, padded, own);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
