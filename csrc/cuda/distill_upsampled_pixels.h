// The distillation loss of each full-resolution pixel of low-resolution logits.
//
// A thread has kRows pixels below each other, a block as many of them side by side as its threads. The
// classes pass by in groups. Of each the block brings the two rows of cells that its pixels lie between
// (asynchronously, while it computes the group before), and writes down once for every cell and class
// what all pixels of the patch share: the values on its left, and the steps to the right. Interpolating a
// class at kRows pixels then takes one load of 16 bytes for each map and a multiply-add a pixel beside a
// few for all; pixels of one patch read the same words. Maxima and sums are a thread's own: nothing is
// exchanged between threads before the block adds up its losses.
//
// A strip of rows that crosses into the next patch, of student or teacher, is taken in parts.
#pragma once

#include "cuda/distill_kernels.h"
#include "cuda/distill_upsampled_rows.h"

namespace isp_distill::cuda {

// A map's logit at a pixel: four loads from global memory.
ISP_DEVICE float interpolated(const Logits& logits, int64_t n, int index, Source y, Source x) {
  const int64_t start = n * logits.stride_n + index * logits.stride_class;
  float rows[2];
  ISP_UNROLL for (int i = 0; i < 2; ++i) {
    const int64_t row = start + (y.cell + (i && y.share > 0)) * logits.stride_a;
    const int next = x.cell + (x.share > 0);
    const float left = cell_value(load_one(logits, row + x.cell * logits.stride_b));
    const float right = cell_value(load_one(logits, row + next * logits.stride_b));
    rows[i] = left + x.share * (right - left);
  }
  const float result = rows[0] + y.share * (rows[1] - rows[0]);
  return result < kNoLogit ? minus_infinity() : result;
}

// Of one map, what a block's pixels are interpolated from.
struct PixelMap {
  Window window;
  Source x;          // of this thread's pixels
  char* raw;         // two rows
  char* lines;       // [classes][cells] of Four: upper left, step to its right, lower left, step
  int room;          // cells of a line
  int upper, lower;  // rows
  float shares[kRows];

  ISP_DEVICE PixelMap(const UpsampledLoss& up, const Logits& logits, int map, int64_t n, int begin,
                      int pixel, char* memory)
      : window(logits, n, begin, 0, up.pixels.pitch[map]), room(up.pixels.cells[map]) {
    const int last = begin_of(up, map, up.pixels.width - 1);
    window.count = (last + 1 < up.x[map].cells ? last + 1 : last) - begin + 1;
    x = source_of(up.x[map], pixel < up.width ? pixel : up.width - 1);
    raw = memory, lines = memory + 2 * up.pixels.classes * window.pitch;
  }
  // The cell that the block's pixel i comes from.
  static ISP_DEVICE int begin_of(const UpsampledLoss& up, int map, int i) {
    const int pixel = static_cast<int>(blockIdx.x % up.pixels.tiles) * up.pixels.width + i;
    return source_of(up.x[map], pixel < up.width ? pixel : up.width - 1).cell;
  }
  static ISP_DEVICE int bytes(const UpsampledLoss& up, int map) {
    return up.pixels.classes * (2 * up.pixels.pitch[map] + 16 * up.pixels.cells[map]);
  }

  // How many of `rows` pixel rows from y on lie in one row of patches; enters that row.
  ISP_DEVICE int enter(const Axis& axis, int y, int rows) {
    upper = source_of(axis, y).cell, lower = upper + 1 < axis.cells ? upper + 1 : upper;
    const int end = first_pixel(axis, upper + 1) - y;
    ISP_UNROLL for (int p = 0; p < kRows; ++p) shares[p] = source_of(axis, y + p).share;
    return end < rows ? end : rows;
  }
  ISP_DEVICE void ask(int first, int classes, int threads) const {
    window.ask(raw, upper, first, classes, threads);
    window.ask(raw + classes * window.pitch, lower, first, classes, threads);
  }
  // From raw to lines; `room_classes` of them, of which those from `classes` on do not exist. Says in
  // `ruled_out` where there is such a value.
  ISP_DEVICE void write_down(int first, int classes, int room_classes, int threads, int* ruled_out) {
    share_out(room_classes, window.count, threads, [&](int k, int i) {
      float a = kRuledOut, b = kRuledOut, c = kRuledOut, d = kRuledOut;
      if (k < classes) {
        const int next = i + 1 < window.count ? i + 1 : i;
        const char* above = window.line(raw, upper, first, k);
        const char* below = window.line(raw + classes * window.pitch, lower, first, k);
        a = window.value(above, i), b = window.value(above, next);
        c = window.value(below, i), d = window.value(below, next);
      }
      const float least = smaller(smaller(a, b), smaller(c, d));
      if (least < kNoLogit) *ruled_out = 1;
      store_as(lines + 16 * (k * room + i),
               Four{{bits_of(a), bits_of(b - a), bits_of(c), bits_of(d - c)}});
    });
  }
  // A class on the left of the pixels: its upper value and the step downwards.
  ISP_DEVICE void look_up(int k, float& value, float& step) const {
    const Four four = load_as<Four>(lines + 16 * (k * room + x.cell - window.begin));
    value = float_of(four.word[0]) + x.share * float_of(four.word[1]);
    step = float_of(four.word[2]) + x.share * float_of(four.word[3]) - value;
  }
};

// Visits all classes, kBatch at a time, with the values and steps of both maps. Every thread comes here.
struct PixelClasses {
  const UpsampledLoss& up;
  PixelMap& student;
  PixelMap& teacher;
  int* flags;  // two, in turn
  int turn = 0;

  ISP_DEVICE void ask(int first) const {
    const int classes = count(first);
    student.ask(first, classes, up.pixels.width), teacher.ask(first, classes, up.pixels.width);
    commit_copies();
  }
  ISP_DEVICE int count(int first) const {
    const int left = static_cast<int>(up.call.classes) - first;
    return left < up.pixels.classes ? left : up.pixels.classes;
  }

  template <class Visit>
  ISP_DEVICE void pass(const Visit& visit) {
    ask(0);
    for (int first = 0; first < up.call.classes; first += up.pixels.classes) {
      wait_copies<0>();
      __syncthreads();
      const int classes = count(first), room = (classes + kBatch - 1) / kBatch * kBatch;
      int* const flag = flags + turn % 2;
      student.write_down(first, classes, room, up.pixels.width, flag);
      teacher.write_down(first, classes, room, up.pixels.width, flag);
      __syncthreads();
      // Who set the other one did so before this barrier, and who reads it did before the last.
      if (threadIdx.x == 0) flags[(turn + 1) % 2] = 0;
      ++turn;
      const bool ruled_out = *flag != 0;
      if (first + up.pixels.classes < up.call.classes) ask(first + up.pixels.classes);
      ISP_ROLLED for (int k = 0; k < room; k += kBatch) {
        float s[kBatch], step_s[kBatch], t[kBatch], step_t[kBatch];
        ISP_UNROLL for (int i = 0; i < kBatch; ++i) {
          student.look_up(k + i, s[i], step_s[i]), teacher.look_up(k + i, t[i], step_t[i]);
        }
        visit(first + k, s, step_s, t, step_t, ruled_out);
      }
    }
  }
};

// A batch of a map at the pixel in row p.
ISP_DEVICE void at_pixel(const float (&value)[kBatch], const float (&step)[kBatch], float share,
                         bool ruled_out, float (&x)[kBatch]) {
  ISP_UNROLL for (int i = 0; i < kBatch; ++i) x[i] = value[i] + share * step[i];
  if (!ruled_out) return;
  ISP_UNROLL for (int i = 0; i < kBatch; ++i) x[i] = x[i] < kNoLogit ? minus_infinity() : x[i];
}

// What the gradient needs of a pixel. An infinite maximum marks one that does not count.
template <Objective O>
ISP_DEVICE void leave_numbers(const UpsampledLoss& up, int64_t pixel, const Row& row, bool counts) {
  if (up.numbers == nullptr) return;
  float* to = up.numbers + pixel * up.words;
  store_as(to, Four{{bits_of(counts ? row.top_t : -minus_infinity()), bits_of(row.top_s),
                     bits_of(row.a), bits_of(row.b)}});
  if constexpr (O == Objective::jsd) store_as(to += 4, Four{{bits_of(row.c), bits_of(row.d), 0, 0}});
  if (up.call.cross_entropy) {
    store_as(to + 4, Four{{bits_of(row.label_scale), bits_of(row.label_weight),
                           static_cast<uint32_t>(row.label), 0}});
  }
}

template <Objective O>
ISP_KERNEL(2) upsampled_pixels(ISP_CONSTANT UpsampledLoss up) {
  const LossCall& call = up.call;
  char* memory = shared_memory();
  const int tile = static_cast<int>(blockIdx.x % up.pixels.tiles);
  const int64_t above = blockIdx.x / up.pixels.tiles, n = above / up.pixels.strips;
  const int x = tile * up.pixels.width + static_cast<int>(threadIdx.x);
  int y = static_cast<int>(above % up.pixels.strips) * kRows - up.pixels.phase;
  int end = y + kRows;
  y = y > 0 ? y : 0, end = end < up.height ? end : up.height;
  char* const maps = memory + 256;
  PixelMap student(up, call.student, 0, n, PixelMap::begin_of(up, 0, 0), x, maps);
  PixelMap teacher(up, call.teacher, 1, n, PixelMap::begin_of(up, 1, 0), x,
                   maps + PixelMap::bytes(up, 0));
  int* const flags = reinterpret_cast<int*>(memory + 128);
  if (threadIdx.x < 2) flags[threadIdx.x] = 0;  // barriers come before anyone sets or reads them
  PixelClasses every{up, student, teacher, flags};

  double loss = 0;
  int64_t agreed = 0;
  for (int rows; y < end; y += rows) {
    rows = student.enter(up.y[0], y, end - y);
    rows = teacher.enter(up.y[1], y, rows);
    const int64_t pixel = (n * up.height + y) * up.width + x;
    const auto place = [&](int p) {
      return place_of(call, pixel + p * up.width, p < rows && x < up.width);
    };
    Passing passing[kRows];
    bool any = false;
    ISP_UNROLL for (int p = 0; p < kRows; ++p) any |= place(p).inside;
    every.pass([&](int index, const auto& s, const auto& step_s, const auto& t, const auto& step_t,
                   bool ruled_out) {
      if (!any) return;
      ISP_UNROLL for (int p = 0; p < kRows; ++p) {
        if (p >= rows) continue;
        float of_s[kBatch], of_t[kBatch];
        at_pixel(s, step_s, student.shares[p], ruled_out, of_s);
        at_pixel(t, step_t, teacher.shares[p], ruled_out, of_t);
        pass_by<O>(passing[p], of_s, of_t, index, 1, call);
      }
    });
    float compared[2][kRows] = {};
    if constexpr (O == Objective::jsd) {
      float log_s[kRows], log_t[kRows];
      ISP_UNROLL for (int p = 0; p < kRows; ++p) {
        log_s[p] = log_2(passing[p].sums.s), log_t[p] = log_2(passing[p].sums.t);
      }
      every.pass([&](int, const auto& s, const auto& step_s, const auto& t, const auto& step_t,
                     bool ruled_out) {
        if (!any) return;
        ISP_UNROLL for (int p = 0; p < kRows; ++p) {
          if (p >= rows) continue;
          float of_s[kBatch], of_t[kBatch];
          at_pixel(s, step_s, student.shares[p], ruled_out, of_s);
          at_pixel(t, step_t, teacher.shares[p], ruled_out, of_t);
          ISP_UNROLL for (int i = 0; i < kBatch; ++i) {
            compare(compared[0][p], compared[1][p],
                    mixture(of_s[i], of_t[i], passing[p].s.top, passing[p].t.top, log_s[p], log_t[p],
                            call.k, call.beta));
          }
        }
      });
    }
    ISP_UNROLL for (int p = 0; p < kRows; ++p) {
      const Place own = place(p);
      if (!own.there) continue;
      Row row;
      row.top_s = row.best_s = passing[p].s.top, row.top_t = passing[p].t.top;
      row.label = own.label;
      Sums& sums = passing[p].sums;
      float value = settle<O>(row, sums, compared[0][p], compared[1][p], own.weight, call);
      if (call.cross_entropy) {
        if (row.label >= 0) {
          const Source of_y = source_of(up.y[0], y + p);
          sums.at_label = interpolated(call.student, n, row.label, of_y, student.x) - row.top_s;
        }
        value += settle_label(row, sums, own.label_weight, call);
      }
      if (!own.inside) value = 0;
      const int64_t at = pixel + p * up.width;
      if (call.row_losses != nullptr) call.row_losses[at] = value;
      loss += value;
      agreed += own.inside && passing[p].s.index == passing[p].t.index;
      leave_numbers<O>(up, at, row, own.inside);
    }
  }
  add_over_warp(loss, agreed);
  leave_part(call, memory, Team<1, 1, false>::warp(), threadIdx.x % 32 == 0, loss, agreed,
             up.pixels.width / 32);
}

}  // namespace isp_distill::cuda
