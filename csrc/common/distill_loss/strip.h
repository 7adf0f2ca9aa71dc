// A strip of logits in cache: how it lies there, what is known of its rows, and their maxima.
//
// A strip is `depth` vectors-deep by `width` lanes wide, in two float buffers `s` and `t`. There are
// two ways to lay logits out in it:
//   down    lane = row (pixel), depth = class: dense maps. Sums over classes are sums of vectors.
//   across  one row alone, class = depth * W + lane, width = W: rows whose classes lie contiguous.
//           The same sums, and one exchange between lanes at the end of each pass.
// Each formula is so written once (passes.h). Exponents and logarithms are to the base 2:
// k = log2(e) / T.
#pragma once

#include "common/distill_loss/vector.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;
// Fills the lanes and depths beyond the last class: weighs nothing anywhere, and is finite.
constexpr float NO_CLASS = -1e30f;

// Per lane, arrays of `width`.
struct LaneState {
  float *max_s, *max_t, *sum_s, *sum_t, *mixed, *mixed2;
  float *sum_label, *sum_logits, *at_label;  // cross entropy: sum of exp, sum of s - max, s[label]
  float *loss, *target_gradient;
  float *weight_objective, *weight_labels;
  int32_t *arg_s, *arg_t, *label, *target, *inside;  // inside the mask: -1, outside: 0
};
constexpr int LANE_ARRAYS = 18;

struct Strip {
  float *s, *t, *e;  // e: exponentials of cross entropy
  int64_t depth, width, classes;
  // Elements from one depth to the next: an odd number of cache lines in a strip of pixels. A power of
  // two would put all classes of a pixel into the same few sets of the first-level cache.
  int64_t pitch;
  LaneState of;
  // Across: the logits of the row that comes next, to be fetched during the arithmetic of this one;
  // bytes of them to a vector of floats. Where none is named, the strip's own memory, which is there.
  // Down: the next strip's, bytes from one class to the next, and cache lines of one class; or 0.
  const char *next_s, *next_t;
  int64_t bytes_s, bytes_t, lines_s, lines_t;
};

INLINE Strip make_strip(float* memory, int64_t depth, int64_t width, int64_t classes, bool third) {
  Strip strip;
  strip.depth = depth, strip.width = width, strip.classes = classes;
  strip.pitch = width == W ? W : width + 16;
  float** arrays[] = {&strip.of.max_s, &strip.of.max_t, &strip.of.sum_s, &strip.of.sum_t,
                      &strip.of.mixed, &strip.of.mixed2, &strip.of.sum_label,
                      &strip.of.sum_logits, &strip.of.at_label, &strip.of.loss,
                      &strip.of.target_gradient, &strip.of.weight_objective,
                      &strip.of.weight_labels};
  for (float** array : arrays) *array = memory, memory += width;
  int32_t** integers[] = {&strip.of.arg_s, &strip.of.arg_t, &strip.of.label, &strip.of.target,
                         &strip.of.inside};
  for (int32_t** array : integers) *array = (int32_t*)memory, memory += width;
  strip.s = memory, memory += depth * strip.pitch;
  strip.t = memory, memory += depth * strip.pitch;
  strip.e = third ? memory : nullptr;
  strip.next_s = strip.next_t = (const char*)strip.s;
  strip.bytes_s = strip.bytes_t = 0, strip.lines_s = strip.lines_t = 0;
  return strip;
}

// Walks over the next strip, a cache line at a time: all of one class of the student, of the teacher,
// then of the next class. In this order, whatever the order of the arithmetic: a class is a page of its
// own, and the processor knows few pages at once.
struct Ahead {
  const char *line, *s, *t;
  int64_t left, classes, step;
  bool of_t;
};

INLINE Ahead ahead_of(const Strip& strip) {
  const bool any = strip.lines_s > 0;
  return {strip.next_s, strip.next_s, strip.next_t, any ? strip.lines_s : INT64_MAX, strip.depth,
          any ? 64 : 0, false};
}

INLINE void fetch_line(const Strip& strip, Ahead& ahead) {
  __builtin_prefetch(ahead.line, 0, 2);
  ahead.line += ahead.step;
  if (--ahead.left > 0) return;
  if (ahead.of_t && --ahead.classes == 0) {  // all is asked for
    ahead.step = 0, ahead.left = INT64_MAX;
    return;
  }
  if (ahead.of_t) ahead.s += strip.bytes_s, ahead.t += strip.bytes_t;
  ahead.of_t = !ahead.of_t;
  ahead.line = ahead.of_t ? ahead.t : ahead.s;
  ahead.left = ahead.of_t ? strip.lines_t : strip.lines_s;
}

// Asks for what comes next, once for each vector of the strip.
template <bool Across>
INLINE void fetch_next(const Strip& strip, int64_t d, Ahead& ahead) {
  if constexpr (Across) {
    __builtin_prefetch(strip.next_s + d * strip.bytes_s, 0, 3);
    __builtin_prefetch(strip.next_t + d * strip.bytes_t, 0, 3);
  } else {
    fetch_line(strip, ahead);
  }
}

// The class that a vector at depth d holds.
template <bool Across>
INLINE I class_at(int64_t d) {
  if constexpr (Across) return splat_int((int32_t)(d * W)) + iota();
  return splat_int((int32_t)d);
}

template <bool Across>
INLINE V total(V x) {
  if constexpr (Across) return sum_across(x);
  return x;
}

INLINE void measure(V x, I index, V& top, I& arg) {
  arg = x > top ? index : arg;
  top = max(x, top);
}

template <bool Across>
INLINE void store_measured(V top, I arg, float* tops, int32_t* args) {
  if constexpr (Across) {
    V all = max_across(top);
    arg = min_across(top == all ? arg : splat_int(0x7fffffff));
    top = all;
  }
  store(tops, top), store_int(args, arg);
}

// Pass 1 over a buffer that holds the logits already.
template <bool Across>
static void measure_buffer(const Strip& strip, const float* buffer, float* tops, int32_t* args) {
  for (int64_t v = 0; v < strip.width; v += W) {
    V top = splat(-__builtin_inff());
    I arg = I{};
    for (int64_t d = 0; d < strip.depth; ++d) {
      measure(load(buffer + d * strip.pitch + v), class_at<Across>(d), top, arg);
    }
    store_measured<Across>(top, arg, tops + v, args + v);
  }
}

// Whether a row counts, its weights and its label, for `count` rows from `row` on, one in each lane.
// Returns how many count; lanes beyond `count` do not.
INLINE int64_t describe_rows(const Strip& strip, const DistillCall& call, int64_t row,
                             int64_t count) {
  const LaneState& of = strip.of;
  int64_t counting = 0;
  int64_t sample = row / call.rows_per_sample, left = (sample + 1) * call.rows_per_sample - row;
  float w = call.weight ? call.weight[sample] : 1.0f;
  for (int64_t i = 0; i < strip.width; ++i) {
    const bool inside = i < count && (call.mask == nullptr || call.mask[row + i]);
    if (i < count && left-- == 0) {
      left = call.rows_per_sample - 1;
      w = call.weight ? call.weight[++sample] : 1.0f;
    }
    int64_t label = inside && call.labels ? call.labels[row + i] : call.ignore_index;
    const bool labelled = label != call.ignore_index;
    of.inside[i] = inside ? -1 : 0;
    of.weight_objective[i] = inside ? (float)(call.factors[0] * w) : 0.0f;
    of.weight_labels[i] = labelled ? (float)(call.factors[1] * w) : 0.0f;
    of.label[i] = labelled ? (int32_t)label : -1;
    counting += inside;
  }
  return counting;
}

// The same for one row in all lanes of a strip that is W wide; false if it does not count.
INLINE bool describe_row(const Strip& strip, const DistillCall& call, int64_t row) {
  if (call.mask && !call.mask[row]) return false;
  const float w = call.weight ? call.weight[row / call.rows_per_sample] : 1.0f;
  const int64_t label = call.labels ? call.labels[row] : call.ignore_index;
  const bool labelled = label != call.ignore_index;
  store(strip.of.weight_objective, splat((float)(call.factors[0] * w)));
  store(strip.of.weight_labels, splat(labelled ? (float)(call.factors[1] * w) : 0.0f));
  store_int(strip.of.label, splat_int(labelled ? (int32_t)label : -1));
  return true;
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
