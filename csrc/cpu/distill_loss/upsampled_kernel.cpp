// The distillation loss at full resolution of logits at low resolution; the full-resolution logits
// exist for a few pixels at a time.
//
// A task is a band of student rows and all output rows that lie at or below one of them and above
// the next. Low-resolution rows are turned to [pixel, class] as they are reached; then bilinear
// interpolation is arithmetic on whole vectors of classes whatever the ratio, first down (once for
// each output row), then along. Output pixels are rows across (strip.h), up to W in a strip, and their
// gradient goes back the same two steps. Up to four pixels between the same two of low resolution are
// made at once, and their gradients added up before they are stored. The first row of a band and the one below its last get their
// gradient from two bands: both are handed to the caller, who adds them in a fixed order.
// Floor: two exponentials an output element; memory sees the low resolution only.
#include "common/distill_loss/passes.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// Rules a class out, and survives interpolation, where -inf times a weight of 0 would not.
constexpr float RULED_OUT = -1e38f;

// A square of W pixels and W classes at a time: NCHW has the pixels of a class side by side, channels
// last the classes of a pixel.
template <Dtype D>
void read_row(const Logits& logits, int64_t n, int64_t y, int64_t width, int64_t classes,
              int64_t padded, bool teacher, float* to) {
  constexpr int size = size_of<D>;
  const char* from = logits.data + (n * logits.stride_n + y * logits.stride_a) * size;
  const int64_t of_class = logits.stride_class * size, of_pixel = logits.stride_b * size;
  const V least = splat(teacher ? RULED_OUT : -__builtin_inff());
  for (int64_t c = 0; c < padded; c += W) {
    const int64_t here = classes - c < W ? classes - c : W;
    for (int64_t x = 0; x < width; x += W) {
      const int64_t count = width - x < W ? width - x : W;
      const char* p = from + x * of_pixel + c * of_class;
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (logits.stride_class == 1) {
          square[i] = i < count ? load_lanes<D>(p + i * of_pixel, 1, here) : V{};
        } else {
          square[i] = i < here ? load_lanes<D>(p + i * of_class, logits.stride_b, count) : V{};
        }
      }
      if (logits.stride_class != 1) transpose(square);
      const I present = iota() < (int32_t)here;
      const V filling = splat(teacher ? RULED_OUT : NO_CLASS);
      for (int64_t i = 0; i < count; ++i) {
        store(to + (x + i) * padded + c, present ? max(least, square[i]) : filling);
      }
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
  const int64_t of_class = logits.stride_class * size, of_pixel = logits.stride_b * size;
  for (int64_t c = 0; c < classes; c += W) {
    const int64_t here = classes - c < W ? classes - c : W;
    for (int64_t x = 0; x < width; x += W) {
      const int64_t count = width - x < W ? width - x : W;
      char* p = to + x * of_pixel + c * of_class;
      V square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) square[i] = i < count ? load(from + (x + i) * padded + c) : V{};
      if (logits.stride_class == 1) {
        for (int64_t i = 0; i < count; ++i) store_lanes<D>(p + i * of_pixel, 1, here, square[i]);
      } else {
        transpose(square);
        for (int64_t i = 0; i < here; ++i) {
          store_lanes<D>(p + i * of_class, logits.stride_b, count, square[i]);
        }
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

// Pixels [v, v + N) of a strip, which lie between the same two of low resolution.
template <int N>
struct Between {
  float *left, *right;
  V second[N];  // the share of `right`
};

// Calls use(Between<N>, v) for all pixels of a strip, `memory` being a row of low resolution. A pixel
// without a share of the right one is alone, and both are the left: what is there may not be finite.
template <class Use>
INLINE void for_all_pixels(const Strip& strip, const Interpolation& along, const int64_t* pixels,
                           float* memory, int64_t padded, const Use& use) {
  const auto call = [&]<int N>(int64_t v) __attribute__((always_inline)) {
    Between<N> at;
    at.left = memory + along.first[pixels[v]] * padded;
    at.right = along.second[pixels[v]] != 0 ? at.left + padded : at.left;
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) at.second[j] = splat(along.second[pixels[v + j]]);
    use(at, v);
  };
  for (int64_t v = 0; v < strip.width;) {
    const int64_t first = along.first[pixels[v]];
    int64_t n = along.second[pixels[v]] != 0;
    while (n > 0 && n < 4 && v + n < strip.width && along.first[pixels[v + n]] == first &&
           along.second[pixels[v + n]] != 0) {
      ++n;
    }
    if (n == 4) {
      call.template operator()<4>(v), v += 4;
    } else if (n >= 2) {
      call.template operator()<2>(v), v += 2;
    } else {
      call.template operator()<1>(v), v += 1;
    }
  }
}

// Output pixels of student or teacher into their buffer, with maxima and first classes. A teacher's
// class that is ruled out is -inf: everywhere, or in the maximum alone, where nothing else asks.
template <bool Teacher, bool Everywhere>
void load_pixels(const Strip strip, const Rows& rows, const Interpolation& along,
                 const int64_t* pixels, float* buffer, float* tops, int32_t* args) {
  for_all_pixels(strip, along, pixels, rows.mixed, rows.padded,
                 [&]<int N>(const Between<N>& at, int64_t v) __attribute__((always_inline)) {
    V top[N];
    I arg[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) top[j] = splat(-__builtin_inff()), arg[j] = I{};
    float* to = buffer + v * strip.pitch;
    for (int64_t d = 0; d < strip.depth; ++d) {
      V left = load(at.left + d * W), difference = load(at.right + d * W) - left;
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        V x = left + at.second[j] * difference;
        if constexpr (Teacher && Everywhere) x = x < NO_CLASS ? splat(-__builtin_inff()) : x;
        store(to + j * strip.pitch + d * W, x);
        measure(x, class_at<true>(d), top[j], arg[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      if constexpr (Teacher) top[j] = top[j] < NO_CLASS ? splat(-__builtin_inff()) : top[j];
      keep_measured<true>(top[j], arg[j], tops, args, v + j);
    }
  });
}

// The gradient of all pixels of a strip, back along the row.
void spread_gradient(const Strip strip, const UpsampledCall& up, const int64_t* pixels, int64_t padded,
                     float* along) {
  with_objective(up.call, [&]<Objective O, bool CrossEntropy>() {
    for_all_pixels(strip, up.student_x, pixels, along, padded,
                   [&]<int N>(const Between<N>& at, int64_t v) __attribute__((always_inline)) {
      for (int64_t d = 0; d < strip.depth; ++d) {
        V left = V{}, right = V{};
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          V g = gradient<O, true, CrossEntropy>(strip, d, v + j), part = at.second[j] * g;
          left += g - part, right += part;
        }
        store(at.left + d * W, load(at.left + d * W) + left);
        store(at.right + d * W, load(at.right + d * W) + right);
      }
    });
  });
}

}  // namespace

// The padded number of classes is that of the widest vectors, on every instruction set.
void distill_upsampled(const UpsampledCall& up, int64_t begin, int64_t end, float* memory) {
  const DistillCall& call = up.call;
  const int64_t padded = (call.classes + 15) / 16 * 16, line = up.student_width * padded;
  Rows student = make_rows(call.student, up.student_height, up.student_width, padded, false, memory);
  Rows teacher = make_rows(call.teacher, up.teacher_height, up.teacher_width, padded, true, memory);
  const bool wanted = call.gradient.data != nullptr;
  float* along = memory;            // the gradient of one output row, brought back along the row
  float* upper = memory + line;     // of the student row that is being left
  float* lower = memory + 2 * line; // and of the next one
  Strip strip = make_strip<true>(memory + (wanted ? 3 * line : 0), call);
  const int64_t room = strip.width;

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
      const int64_t row = (n * up.height + y) * up.width;
      for (int64_t x = 0; x < up.width;) {
        // As many pixels as there is room for; those that do not count are passed over.
        int64_t pixels[W], rows[W];
        for (strip.width = 0; x < up.width && strip.width < room; ++x) {
          if (describe_row(strip, call, row + x, strip.width)) {
            pixels[strip.width] = x, rows[strip.width++] = row + x;
          } else if (call.row_losses) {
            call.row_losses[row + x] = 0;
          }
        }
        load_pixels<false, false>(strip, student, up.student_x, pixels, strip.s, strip.of.max_s,
                                  strip.of.arg_s);
        auto* load_teacher = call.objective == Objective::forward_kl ? load_pixels<true, false>
                                                                     : load_pixels<true, true>;
        load_teacher(strip, teacher, up.teacher_x, pixels, strip.t, strip.of.max_t, strip.of.arg_t);
        settle_strip<true, false>(strip, call);
        add_up_rows(strip, call, rows, loss, agreements);
        if (wanted) spread_gradient(strip, up, pixels, padded, along);
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
