// The feature loss of maps whose grids differ from the one that it is taken at; the resampled features
// exist for one strip at a time.
//
// A task is a band of student rows and all output rows that lie at or below one of them and above the
// next. Columns come in strips of some output columns. A map's row is spread along the strip's columns
// once, when it is reached: then each output row is a mixture of two spread rows, plain arithmetic on
// vectors. The gradient goes back the same way: output rows are added to the two spread rows above and
// below, and a row is gathered along its columns once, when it is left. What falls on the first row of
// the next band is handed to the caller's second pass, which adds in a fixed order.
// Floor: the memory stream of the maps as they are, each read once, and the student's gradient.
#include "cpu/feature_loss/strip.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// How many channels ahead of the one that is read.
constexpr int64_t kAhead = 8;

// A map seen at the output's resolution, in a strip of its columns.
struct Side {
  const Logits* map;
  Interpolation down, along;
  const Band* bands;     // of `along`
  int64_t height, width;
  bool as_it_is;         // its grid is the output's
  float *upper, *lower;  // two neighbouring rows, spread: [channel, pitch]
  float* row;            // one channel of one row, as floats
  int64_t at;            // which row `upper` is; `lower` is the next one
};

template <Dtype D>
void read_line(const char* from, int64_t stride, int64_t count, float* to) {
  constexpr int size = size_of<D>;
  for (int64_t x = 0; x < count; x += W) {
    store(to + x, load_lanes<D>(from + x * stride * size, stride, count - x));
  }
}

// Sixteen results at `to`, of inputs at `from` (number `origin` of all); at most [begin, end) of them.
template <bool Add>
INLINE void multiply(const Band& band, int64_t begin, int64_t end, const float* from, int64_t origin,
                     float* to) {
  const int64_t low = band.low < begin ? begin : band.low, high = band.high < end ? band.high : end;
  // Two sums of each: one would wait for its own last addition.
  V even[16 / W], odd[16 / W];
  for (int k = 0; k < 16 / W; ++k) even[k] = Add ? load(to + k * W) : V{}, odd[k] = V{};
  const float* weights = band.weights + (low - band.low) * 16;
  int64_t i = low;
  for (; i + 2 <= high; i += 2, weights += 32) {
    const V x = splat(from[i - origin]), y = splat(from[i + 1 - origin]);
    for (int k = 0; k < 16 / W; ++k) {
      even[k] += x * load(weights + k * W), odd[k] += y * load(weights + 16 + k * W);
    }
  }
  for (int k = 0; k < 16 / W; ++k) {
    if (i < high) even[k] += splat(from[i - origin]) * load(weights + k * W);
    store(to + k * W, even[k] + odd[k]);
  }
}

// Whether no NaN and nothing infinite is among them: 0 times such a one would spread it over a block.
INLINE bool all_finite(const float* x, int64_t count) {
  V bad = V{};
  int64_t i = 0;
  for (; i + W <= count; i += W) bad += load(x + i) * 0.0f;
  for (; i < count; ++i) bad[0] += x[i] * 0.0f;
  return sum_across(bad)[0] == 0;
}

// Columns [x, x + count) of a channel's row, spread, into `to`; zeros to fill up the last vector.
template <Dtype D>
void spread_line(const Side& side, int64_t n, int64_t y, int64_t channel, int64_t x, int64_t count,
                 float* to) {
  const Logits& map = *side.map;
  const int64_t first = side.along.first[x], last = side.along.first[x + count - 1];
  const int64_t end = last + 2 < side.width ? last + 2 : side.width;
  const char* from = map.data + (n * map.stride_n + y * map.stride_a + first * map.stride_b +
                                 channel * map.stride_class) * size_of<D>;
  // Channels lie far apart: the processor does not see by itself which line comes next.
  if (map.stride_b == 1) {
    const char* ahead = from + kAhead * map.stride_class * size_of<D>;
    const int64_t bytes = (side.as_it_is ? count : end - first) * size_of<D>;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
  }
  if (side.as_it_is) return read_line<D>(from, map.stride_b, count, to);
  const float* line = (const float*)from;
  if (D != Dtype::float32 || map.stride_b != 1) {
    read_line<D>(from, map.stride_b, end - first, side.row);
    line = side.row;
  }
  if (all_finite(line, end - first)) {
    for (int64_t i = 0; i < count; i += 16) {
      multiply<false>(side.bands[(x + i) / 16], first, end, line, first, to + i);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* a = line + (side.along.first[x + i] - first);
    const float share = side.along.second[x + i];
    to[i] = share == 0 ? a[0] : a[0] + share * (a[1] - a[0]);
  }
  for (int64_t i = count; i % W; ++i) to[i] = 0;
}

void spread_row(const Strip& strip, const Side& side, int64_t n, int64_t y, int64_t x, int64_t count,
                float* to) {
  with_dtype(side.map->dtype, [&]<Dtype D>() {
    for (int64_t d = 0; d < strip.depth; ++d) {
      spread_line<D>(side, n, y, d, x, count, to + d * strip.pitch);
    }
  });
}

void read_as_it_is(const Side& side, int64_t n, int64_t y, int64_t channel, int64_t x, int64_t count,
                   float* to) {
  with_dtype(side.map->dtype,
             [&]<Dtype D>() { spread_line<D>(side, n, y, channel, x, count, to); });
}

// Brings both rows that output rows between y and y + 1 are mixed of.
void reach(const Strip& strip, Side& side, int64_t n, int64_t y, int64_t x, int64_t count) {
  if (side.as_it_is || y == side.at) return;
  if (y == side.at + 1) {
    float* previous = side.upper;
    side.upper = side.lower, side.lower = previous;
  } else {
    spread_row(strip, side, n, y, x, count, side.upper);
  }
  side.at = y;
  if (y + 1 < side.height) spread_row(strip, side, n, y + 1, x, count, side.lower);
}

INLINE V mixed(const Side& side, int64_t at, float share) {
  const V a = load(side.upper + at);
  return share == 0 ? a : a + share * (load(side.lower + at) - a);
}

// Both strips of an output row into the buffers, with the sums that `load_strips` of down_kernel.cpp
// makes on the way.
template <Elements E, bool Centre>
void fill(const Strip& strip, const FeatureCall& call, const Side& student, const Side& teacher,
          int64_t n, int64_t y, int64_t x, int64_t count) {
  const float share_s = student.down.second[y], share_t = teacher.down.second[y];
  const float beta = call.beta;
  for (int64_t v = 0; v < strip.width; v += W) {
    store(strip.ss + v, V{}), store(strip.tt + v, V{}), store(strip.st + v, V{});
    store(strip.value + v, V{});
  }
  for (int64_t d = 0; d < strip.depth; ++d) {
    float *s = strip.s + d * strip.pitch, *t = strip.t + d * strip.pitch;
    if (student.as_it_is) read_as_it_is(student, n, y, d, x, count, s);
    if (teacher.as_it_is) read_as_it_is(teacher, n, y, d, x, count, t);
    for (int64_t v = 0; v < count; v += W) {
      V a = student.as_it_is ? load(s + v) : mixed(student, d * strip.pitch + v, share_s);
      V b = teacher.as_it_is ? load(t + v) : mixed(teacher, d * strip.pitch + v, share_t);
      const I inside = load_int(strip.inside + v);
      a = inside != 0 ? a : V{}, b = inside != 0 ? b : V{};
      if (call.scale) {
        a = (a - call.mean[d]) * call.scale[d], b = (b - call.mean[d]) * call.scale[d];
      }
      store(s + v, a), store(t + v, b);
      if constexpr (Centre) {
        store(strip.ss + v, load(strip.ss + v) + a), store(strip.tt + v, load(strip.tt + v) + b);
      } else {
        store(strip.ss + v, load(strip.ss + v) + a * a);
        store(strip.tt + v, load(strip.tt + v) + b * b);
        store(strip.st + v, load(strip.st + v) + a * b);
      }
      if constexpr (E != Elements::none) {
        store(strip.value + v,
              load(strip.value + v) + value_of<E>(a - b, pull_of<E>(a - b, beta)));
      }
    }
  }
}

void fill_as_asked(const Strip& strip, const FeatureCall& call, const Side& student,
                   const Side& teacher, int64_t n, int64_t y, int64_t x, int64_t count) {
  if (call.normalise == Normalise::layer) {
    fill<Elements::none, true>(strip, call, student, teacher, n, y, x, count);
    return centre(strip);
  }
  with_elements(scaled(call) ? Elements::none : call.elements, [&]<Elements E>() {
    fill<E, false>(strip, call, student, teacher, n, y, x, count);
  });
}

// The output row's gradient, shared out to the rows above and below.
template <Elements E, bool Alone>
void share_out(const Strip& strip, const FeatureCall& call, float share, int64_t count, float* upper,
               float* lower) {
  for (int64_t d = 0; d < strip.depth; ++d) {
    for (int64_t v = 0; v < count; v += W) {
      const V g = gradient_at<E, Alone>(strip, call, d, v), part = share * g;
      float *a = upper + d * strip.pitch + v, *b = lower + d * strip.pitch + v;
      store(a, load(a) + (share == 0 ? g : g - part));
      if (share != 0) store(b, load(b) + part);
    }
  }
}

// A spread row's gradient, gathered along its columns and added to `to`, [channel, padded].
void gather_row(const Strip& strip, const Side& side, const Band* bands, int64_t x, int64_t count,
                const float* from, float* to, int64_t padded) {
  const int64_t first = side.along.first[x], last = side.along.first[x + count - 1];
  for (int64_t d = 0; d < strip.depth; ++d, from += strip.pitch, to += padded) {
    if (all_finite(from, count)) {
      for (int64_t c = first / 16 * 16; c < side.width && c <= last + 1; c += 16) {
        multiply<true>(bands[c / 16], x, x + count, from, x, to + c);
      }
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = side.along.first[x + i];
      const float share = side.along.second[x + i], part = share * from[i];
      to[column] += share == 0 ? from[i] : from[i] - part;
      if (share != 0) to[column + 1] += part;
    }
  }
}

Side make_side(const Logits& map, Interpolation down, Interpolation along, const Band* bands,
               int64_t height, int64_t width, bool as_it_is, int64_t buffer, float*& memory) {
  Side side{&map, down, along, bands, height, width, as_it_is, nullptr, nullptr, nullptr, -2};
  if (as_it_is) return side;
  side.upper = memory, side.lower = memory + buffer, side.row = memory + 2 * buffer;
  memory += 2 * buffer + (width + 32) / 16 * 16;
  return side;
}

template <Dtype D>
void write_line(char* to, int64_t stride, int64_t count, const float* from) {
  constexpr int size = size_of<D>;
  for (int64_t x = 0; x < count; x += W) {
    const int64_t here = count - x < W ? count - x : W;
    float padded[W] = {};
    memcpy(padded, from + x, here * sizeof(float));
    store_lanes<D>(to + x * stride * size, stride, here, load(padded));
  }
}

}  // namespace

// Tasks [begin, end), each a band of a sample.
void feature_resampled(const ResampledCall& of, int64_t begin, int64_t end, float* memory) {
  const FeatureCall& call = of.call;
  Strip strip = make_strip(memory, call.channels, call.rows);
  const int64_t buffer = call.channels * strip.pitch;
  memory += 12 * call.rows + 2 * buffer;
  Side student = make_side(call.student, of.student_y, of.student_x, of.student_bands,
                           of.student_height, of.student_width, of.student_as_it_is, buffer, memory);
  Side teacher = make_side(call.teacher, of.teacher_y, of.teacher_x, of.teacher_bands,
                           of.teacher_height, of.teacher_width, of.teacher_as_it_is, buffer, memory);
  float *upper = memory, *lower = memory + buffer;
  const bool wanted = of.gradient_rows != nullptr;
  const int64_t padded = (of.student_width + 15) / 16 * 16, line = call.channels * padded;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / of.bands, top = task % of.bands * of.band;
    const int64_t bottom = top + of.band < of.student_height ? top + of.band : of.student_height;
    float* rows = wanted ? of.gradient_rows + task * (of.band + 1) * line : nullptr;
    if (wanted) memset(rows, 0, (of.band + 1) * line * sizeof(float));
    double loss = 0, similarity = 0;
    for (int64_t x = 0; x < of.width; x += call.rows) {
      const int64_t count = of.width - x < call.rows ? of.width - x : call.rows;
      strip.width = (count + 15) / 16 * 16;
      if (wanted) memset(upper, 0, buffer * sizeof(float)), memset(lower, 0, buffer * sizeof(float));
      student.at = teacher.at = -2;
      int64_t current = top;
      const auto leave = [&]() {
        gather_row(strip, student, of.gradient_bands, x, count, upper,
                   rows + (current - top) * line, padded);
        float* previous = upper;
        upper = lower, lower = previous;
        memset(lower, 0, buffer * sizeof(float));
        ++current;
      };
      int64_t y = 0;
      while (y < of.height && of.student_y.first[y] < top) ++y;
      for (; y < of.height && of.student_y.first[y] < bottom; ++y) {
        const int64_t above = of.student_y.first[y], row = (n * of.height + y) * of.width + x;
        while (wanted && current < above) leave();
        if (describe(strip, call, row, count) == 0) {
          if (call.row_losses) memset(call.row_losses + row, 0, count * sizeof(float));
          continue;
        }
        reach(strip, student, n, above, x, count);
        reach(strip, teacher, n, of.teacher_y.first[y], x, count);
        fill_as_asked(strip, call, student, teacher, n, y, x, count);
        with_elements(call.elements, [&]<Elements E>() {
          settle_strip<E>(strip, call);
          if (!wanted) return;
          const float share = of.student_y.second[y];
          if (E != Elements::none && elements_alone(call)) {
            share_out<E, true>(strip, call, share, count, upper, lower);
          } else {
            share_out<E, false>(strip, call, share, count, upper, lower);
          }
        });
        const Added sum = add_up(strip, call, row, count);
        loss += sum.loss, similarity += sum.similarity;
      }
      while (wanted && current < bottom) leave();
      if (wanted) {
        gather_row(strip, student, of.gradient_bands, x, count, upper,
                   rows + (bottom - top) * line, padded);
      }
    }
    call.task_losses[task] = loss;
    call.task_similarities[task] = similarity;
  }
}

// The gradients of all rows of a band, with what the band above left for its first one.
void feature_resampled_rows(const ResampledCall& of, int64_t begin, int64_t end) {
  const FeatureCall& call = of.call;
  const Logits& gradient = call.gradient;
  const int64_t padded = (of.student_width + 15) / 16 * 16, line = call.channels * padded;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / of.bands, top = task % of.bands * of.band;
    const int64_t bottom = top + of.band < of.student_height ? top + of.band : of.student_height;
    float* rows = of.gradient_rows + task * (of.band + 1) * line;
    if (top != 0) {
      const float* left = rows - line;
      for (int64_t i = 0; i < line; ++i) rows[i] += left[i];
    }
    for (int64_t y = top; y < bottom; ++y) {
      for (int64_t d = 0; d < call.channels; ++d) {
        const float* from = rows + (y - top) * line + d * padded;
        const int64_t element =
            n * gradient.stride_n + y * gradient.stride_a + d * gradient.stride_class;
        with_dtype(gradient.dtype, [&]<Dtype D>() {
          write_line<D>(gradient.data + element * size_of<D>, gradient.stride_b, of.student_width,
                        from);
        });
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
