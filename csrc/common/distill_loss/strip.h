// A strip of logits in cache: how it lies there, what is known of its rows, and their maxima.
//
// A strip holds `width` rows, in two float buffers `s` and `t`. There are two ways to lay it out:
//   down    lane = row (pixel), one vector for each class and W rows: dense maps. Sums over classes
//           are sums of vectors.
//   across  up to W rows one below the other, lane = class: rows whose classes lie contiguous. The
//           same sums, and one exchange between lanes at the end of each pass over a row; no row
//           waits for another one's, and what comes after the sums is done for all rows at once.
// What is known of a row lies in a lane of its own either way, so each formula is written once
// (passes.h). Exponents and logarithms are to the base 2: k = log2(e) / T.
#pragma once

#include "common/distill_loss/vector.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;
// Fills the lanes and depths beyond the last class: weighs nothing anywhere, and is finite.
constexpr float NO_CLASS = -1e30f;

// Per row, arrays of `width` and at least W.
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
  int64_t depth, width, classes;  // depth: vectors of a row, across; classes, down
  // Elements from one row to the next (across) or from one class to the next (down): an odd number of
  // cache lines. A power of two would put all of them into the same few sets of the first-level cache.
  int64_t pitch;
  LaneState of;
  // The logits that are fetched during the arithmetic of these. Across: the row after the last one, bytes
  // from there to the next row, and bytes to a vector of floats. Down: the next strip, bytes from one
  // class to the next, and cache lines of one class; or 0.
  const char *next_s, *next_t;
  int64_t bytes_s, bytes_t, vector_s, vector_t, lines_s, lines_t;
};

// Passes take the strip by value. Of a reference, all that it says would be read again after every store,
// for all that the compiler knows of what the store may have changed.

// How a pass goes over a strip: from one row, or W rows, to the next; where the vector at depth d lies;
// what is known of the row, in all lanes; and what comes out of it, to be kept.
template <bool Across>
constexpr int64_t STEP = Across ? 1 : W;

template <bool Across>
INLINE int64_t place(const Strip& strip, int64_t d, int64_t v) {
  return Across ? v * strip.pitch + d * W : d * strip.pitch + v;
}

template <bool Across>
INLINE V of_row(const float* values, int64_t v) {
  return Across ? splat(values[v]) : load(values + v);
}

template <bool Across>
INLINE I of_row_int(const int32_t* values, int64_t v) {
  return Across ? splat_int(values[v]) : load_int(values + v);
}

template <bool Across>
INLINE void keep(float* values, int64_t v, V x) {
  if constexpr (Across) {
    values[v] = x[0];
  } else {
    store(values + v, x);
  }
}

template <bool Across>
INLINE void keep_sum(float* values, int64_t v, V x) {
  keep<Across>(values, v, Across ? sum_across(x) : x);
}

// `memory`: as strips_down() or strips_across() say. Across, the caller sets `width` to the rows there are.
template <bool Across>
INLINE Strip make_strip(float* memory, const DistillCall& call) {
  Strip strip;
  strip.depth = Across ? (call.classes + W - 1) / W : call.classes;
  strip.width = Across && call.strip_rows > W ? W : call.strip_rows;
  strip.classes = call.classes, strip.pitch = call.pitch;
  const int64_t width = strip.width < W ? W : strip.width;
  const int64_t elements = (Across ? strip.width : call.classes) * strip.pitch;
  memset(memory, 0, LANE_ARRAYS * width * sizeof(float));
  float** arrays[] = {&strip.of.max_s, &strip.of.max_t, &strip.of.sum_s, &strip.of.sum_t,
                      &strip.of.mixed, &strip.of.mixed2, &strip.of.sum_label,
                      &strip.of.sum_logits, &strip.of.at_label, &strip.of.loss,
                      &strip.of.target_gradient, &strip.of.weight_objective,
                      &strip.of.weight_labels};
  for (float** array : arrays) *array = memory, memory += width;
  int32_t** integers[] = {&strip.of.arg_s, &strip.of.arg_t, &strip.of.label, &strip.of.target,
                         &strip.of.inside};
  for (int32_t** array : integers) *array = (int32_t*)memory, memory += width;
  strip.s = memory, memory += elements;
  strip.t = memory, memory += elements;
  strip.e = call.cross_entropy ? memory : nullptr;
  strip.next_s = strip.next_t = (const char*)strip.s;
  strip.bytes_s = strip.bytes_t = strip.vector_s = strip.vector_t = 0;
  strip.lines_s = strip.lines_t = 0;
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

// Asks for what comes next, once for each vector of the strip. Where rows do not follow each other at one
// distance, some lines are asked for in vain: no harm is done.
template <bool Across, bool Fetch>
INLINE void fetch_next(const Strip& strip, int64_t d, int64_t v, Ahead& ahead) {
  if constexpr (!Fetch) {
  } else if constexpr (Across) {
    __builtin_prefetch(strip.next_s + v * strip.bytes_s + d * strip.vector_s, 0, 3);
    __builtin_prefetch(strip.next_t + v * strip.bytes_t + d * strip.vector_t, 0, 3);
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

INLINE void measure(V x, I index, V& top, I& arg) {
  arg = x > top ? index : arg;
  top = max(x, top);
}

template <bool Across>
INLINE void keep_measured(V top, I arg, float* tops, int32_t* args, int64_t v) {
  if constexpr (Across) {
    V all = max_across(top);
    tops[v] = all[0], args[v] = min_across(top == all ? arg : splat_int(0x7fffffff))[0];
  } else {
    store(tops + v, top), store_int(args + v, arg);
  }
}

// Pass 1 over a buffer that holds the logits already.
template <bool Across>
static void measure_buffer(const Strip& strip, const float* buffer, float* tops, int32_t* args) {
  for (int64_t v = 0; v < strip.width; v += STEP<Across>) {
    V top = splat(-__builtin_inff());
    I arg = I{};
    for (int64_t d = 0; d < strip.depth; ++d) {
      measure(load(buffer + place<Across>(strip, d, v)), class_at<Across>(d), top, arg);
    }
    keep_measured<Across>(top, arg, tops, args, v);
  }
}

// Whether a row counts, its weights and its label, for `count` rows from `row` on, one in each lane.
// Returns how many count; lanes beyond `count` do not.
INLINE int64_t describe_rows(const Strip& strip, const DistillCall& call, int64_t row,
                             int64_t count) {
  const LaneState& of = strip.of;
  if (!call.mask && !call.labels && !call.weight) {  // all alike, which a few classes' rows notice
    for (int64_t i = 0; i < strip.width; ++i) {
      of.inside[i] = i < count ? -1 : 0;
      of.weight_objective[i] = i < count ? (float)call.factors[0] : 0.0f;
      of.weight_labels[i] = 0, of.label[i] = -1;
    }
    return count;
  }
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

// The same for one row in lane `v`; false if it does not count.
INLINE bool describe_row(const Strip& strip, const DistillCall& call, int64_t row, int64_t v) {
  if (call.mask && !call.mask[row]) return false;
  const float w = call.weight ? call.weight[row / call.rows_per_sample] : 1.0f;
  const int64_t label = call.labels ? call.labels[row] : call.ignore_index;
  const bool labelled = label != call.ignore_index;
  strip.of.weight_objective[v] = (float)(call.factors[0] * w);
  strip.of.weight_labels[v] = labelled ? (float)(call.factors[1] * w) : 0.0f;
  strip.of.label[v] = labelled ? (int32_t)label : -1;
  return true;
}

// What came of the rows of a strip, across; rows[v] is the one in lane v.
INLINE void add_up_rows(const Strip& strip, const DistillCall& call, const int64_t* rows, double& loss,
                        int64_t& agreements) {
  for (int64_t v = 0; v < strip.width; ++v) {
    agreements += strip.of.arg_s[v] == strip.of.arg_t[v];
    if (call.row_losses) {
      call.row_losses[rows[v]] = strip.of.loss[v];
    } else {
      loss += strip.of.loss[v];
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
