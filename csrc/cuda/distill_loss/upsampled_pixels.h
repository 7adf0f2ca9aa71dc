// The distillation loss of each full-resolution pixel of low-resolution logits.
//
// A thread has kRows pixels below each other, a block as many of them side by side as its threads. The
// classes pass by in groups. Of each the block brings the two rows of cells that its pixels lie between
// (asynchronously, while it computes the group before), and writes down once for every cell and class
// what all pixels of the patch share: the values on its left, and the steps to the right. Interpolating
// a class at kRows pixels then takes one load of 16 bytes for each map and a multiply-add a pixel
// beside a few for all; pixels of one patch read the same words. Maxima and sums are a thread's own:
// nothing is exchanged between threads before the block adds up its losses.
//
// A strip of rows that crosses into the next patch, of student or teacher, is taken in parts.
#pragma once

#include "cuda/distill_loss/kernels.h"
#include "cuda/distill_loss/upsampled_rows.h"

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

// A block's shared memory: its parts of the loss, what its threads agree on, then for either map the
// rows of cells as they came (`raw`) and what was made of them (`lines`: for a class and cell the
// values above and below, each with the step to its right).
struct PixelMemory {
  static constexpr int kMaps = 256;
  struct Patches {
    int begin, count;  // cells
    int upper, lower;  // their rows
  };
  char* memory;
  const UpsampledLoss& up;

  ISP_DEVICE Patches& patches(int map) const {
    return reinterpret_cast<Patches*>(memory + 128)[map];
  }
  // Whether there is a class that is ruled out; two, in turn. Who sets it, sets it to 1.
  ISP_DEVICE int& ruled_out(int turn) const { return reinterpret_cast<int*>(memory + 192)[turn % 2]; }
  ISP_DEVICE char* raw(int map) const {
    return memory + kMaps + (map ? up.pixels.classes * 2 * up.pixels.pitch[0] : 0);
  }
  ISP_DEVICE char* lines(int map) const {
    const int of_raw = 2 * (up.pixels.pitch[0] + up.pixels.pitch[1]);
    return memory + kMaps + up.pixels.classes * (of_raw + (map ? 16 * up.pixels.cells[0] : 0));
  }
};

// Asks for the rows of both maps' classes [first, first + classes).
ISP_DEVICE void ask_for(const PixelMemory& at, int64_t n, int first, int classes) {
  ISP_ROLLED for (int map = 0; map < 2; ++map) {
    const PixelMemory::Patches of = at.patches(map);
    const Window window = {n, of.begin, of.count, first, classes, at.up.pixels.pitch[map]};
    ask(at.up.maps[map], window, of.upper, of.lower, at.raw(map), at.up.pixels.width);
  }
  commit_copies();
}

// From raw to lines. Classes up to a whole batch are written, as ruled out.
ISP_DEVICE void write_down(const PixelMemory& at, int64_t n, int first, int classes, int turn) {
  ISP_ROLLED for (int map = 0; map < 2; ++map) {
    const Logits& logits = at.up.maps[map];
    const PixelMemory::Patches of = at.patches(map);
    const Window window = {n, of.begin, of.count, first, classes, at.up.pixels.pitch[map]};
    const char* raw = at.raw(map);
    const char* behind = raw + (of.upper == of.lower ? 0 : classes * window.pitch);
    char* lines = at.lines(map);
    const int cells = at.up.pixels.cells[map];
    share_out(up_to_batch(classes), of.count, at.up.pixels.width, [&](int k, int i) {
      float a = kRuledOut, b = kRuledOut, c = kRuledOut, d = kRuledOut;
      if (k < classes) {
        const int next = i + 1 < of.count ? i + 1 : i;
        const char* above = line_of(logits, window, of.upper, k, raw);
        const char* below = line_of(logits, window, of.lower, k, behind);
        a = cell_at(logits, above, i), b = cell_at(logits, above, next);
        c = cell_at(logits, below, i), d = cell_at(logits, below, next);
      }
      if (smaller(smaller(a, b), smaller(c, d)) < kNoLogit) at.ruled_out(turn) = 1;
      store_as(lines + 16 * (k * cells + i),
               Four{{bits_of(a), bits_of(b - a), bits_of(c), bits_of(d - c)}});
    });
  }
}

// A map's classes at this thread's column: the upper value and the step downwards.
ISP_DEVICE void look_up(const char* own, int cells, float share, int k, float (&value)[kBatch],
                        float (&step)[kBatch]) {
  ISP_UNROLL for (int i = 0; i < kBatch; ++i) {
    const Four four = load_as<Four>(own + 16 * (k + i) * cells);
    value[i] = float_of(four.word[0]) + share * float_of(four.word[1]);
    step[i] = float_of(four.word[2]) + share * float_of(four.word[3]) - value[i];
  }
}

// Whether a batch may hold a class that is ruled out: most code is compiled for both, since telling
// them apart at each value costs a fifth of a pixel's instructions.
template <bool R>
struct RuledOut {};

// Visits all classes, kBatch at a time, with the values and steps of both maps. Every thread comes
// here.
template <class Visit>
ISP_DEVICE void all_classes(const PixelMemory& at, int64_t n, const char* (&own)[2],
                            const float (&share)[2], int& turn, const Visit& visit) {
  const int together = at.up.pixels.classes, all = static_cast<int>(at.up.call.classes);
  const auto count = [&](int first) { return all - first < together ? all - first : together; };
  ISP_ROLLED for (int first = -together; first < all; first += together) {
    if (first >= 0) {
      wait_copies<0>();
      __syncthreads();
      write_down(at, n, first, count(first), turn);
      __syncthreads();
      // Who set the other one did so before this barrier, and who reads it did before the last.
      if (threadIdx.x == 0) at.ruled_out(turn + 1) = 0;
    }
    if (first + together < all) ask_for(at, n, first + together, count(first + together));
    if (first < 0) continue;
    const bool ruled_out = at.ruled_out(turn) != 0;
    ++turn;
    ISP_ROLLED for (int k = 0; k < count(first); k += kBatch) {
      float s[kBatch], step_s[kBatch], t[kBatch], step_t[kBatch];
      look_up(own[0], at.up.pixels.cells[0], share[0], k, s, step_s);
      look_up(own[1], at.up.pixels.cells[1], share[1], k, t, step_t);
      if (ruled_out) {
        visit(first + k, s, step_s, t, step_t, RuledOut<true>{});
      } else {
        visit(first + k, s, step_s, t, step_t, RuledOut<false>{});
      }
    }
  }
}

// A batch of a map at a pixel.
template <bool R>
ISP_DEVICE void at_pixel(const float (&value)[kBatch], const float (&step)[kBatch], float share,
                         RuledOut<R>, float (&x)[kBatch]) {
  ISP_UNROLL for (int i = 0; i < kBatch; ++i) {
    x[i] = value[i] + share * step[i];
    if (R && x[i] < kNoLogit) x[i] = minus_infinity();
  }
}

// What the gradient needs of a pixel. A maximum of -inf, which no row has, marks one that does not
// count.
template <Objective O>
ISP_DEVICE void leave_numbers(const UpsampledLoss& up, int64_t pixel, const Row& row, bool counts) {
  if (up.numbers == nullptr) return;
  float* to = up.numbers + pixel * up.words;
  store_as(to, Four{{bits_of(counts ? row.top_t : minus_infinity()), bits_of(row.top_s),
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
  const PixelMemory at{shared_memory(), up};
  const int begin = static_cast<int>(blockIdx.x % up.pixels.tiles) * up.pixels.width;
  const int64_t above = blockIdx.x / up.pixels.tiles, n = above / up.pixels.strips;
  int y = static_cast<int>(above % up.pixels.strips) * kRows - up.pixels.phase;
  int end = y + kRows, turn = 0;
  y = y > 0 ? y : 0, end = end < up.height ? end : up.height;

  // This thread's column; beyond the last one it looks at that and counts nothing.
  const int x = begin + static_cast<int>(threadIdx.x), last = up.width - 1;
  const char* own[2];
  float share_x[2];
  ISP_UNROLL for (int map = 0; map < 2; ++map) {
    const Source source = source_of(up.x[map], x < last ? x : last);
    const int cell = source_of(up.x[map], begin).cell;
    own[map] = at.lines(map) + 16 * (source.cell - cell), share_x[map] = source.share;
    if (threadIdx.x != 0) continue;
    const int far = begin + up.pixels.width - 1;
    const int right = source_of(up.x[map], far < last ? far : last).cell;
    at.patches(map).begin = cell, at.ruled_out(map) = 0;
    at.patches(map).count = (right + 1 < up.x[map].cells ? right + 1 : right) - cell + 1;
  }

  double loss = 0;
  int agreed = 0;
  for (int rows; y < end; y += rows) {
    // As many rows as lie in one row of patches of both maps.
    rows = end - y;
    float shares[2][kRows];
    ISP_UNROLL for (int map = 0; map < 2; ++map) {
      const Axis& axis = up.y[map];
      const int upper = source_of(axis, y).cell, left = first_pixel(axis, upper + 1) - y;
      rows = left < rows ? left : rows;
      ISP_UNROLL for (int p = 0; p < kRows; ++p) shares[map][p] = source_of(axis, y + p).share;
      if (threadIdx.x != 0) continue;
      at.patches(map).upper = upper;
      at.patches(map).lower = upper + 1 < axis.cells ? upper + 1 : upper;
    }
    __syncthreads();
    const int64_t pixel = (n * up.height + y) * up.width + x;
    const auto place = [&](int p) {
      return place_of(call, pixel + p * up.width, p < rows && x < up.width);
    };
    Passing passing[kRows];
    bool any = false;
    ISP_UNROLL for (int p = 0; p < kRows; ++p) any |= place(p).inside;
    // use(p, s, t, index): a batch of classes from `index` on at pixel p.
    const auto at_every_pixel = [&](const auto& use) {
      all_classes(at, n, own, share_x, turn, [&](int index, const auto& s, const auto& step_s,
                                                 const auto& t, const auto& step_t, auto ruled_out) {
        if (!any) return;
        ISP_UNROLL for (int p = 0; p < kRows; ++p) {
          if (p >= rows) continue;
          float of_s[kBatch], of_t[kBatch];
          at_pixel(s, step_s, shares[0][p], ruled_out, of_s);
          at_pixel(t, step_t, shares[1][p], ruled_out, of_t);
          use(p, of_s, of_t, index);
        }
      });
    };
    at_every_pixel([&](int p, const auto& s, const auto& t, int index) {
      pass_by<O>(passing[p], s, t, index, 1, call);
    });
    float compared[2][kRows] = {};
    if constexpr (O == Objective::jsd) {
      float log_s[kRows], log_t[kRows];
      ISP_UNROLL for (int p = 0; p < kRows; ++p) {
        log_s[p] = log_2(passing[p].sums.s), log_t[p] = log_2(passing[p].sums.t);
      }
      at_every_pixel([&](int p, const auto& s, const auto& t, int) {
        ISP_UNROLL for (int i = 0; i < kBatch; ++i) {
          compare(compared[0][p], compared[1][p],
                  mixture(s[i], t[i], passing[p].s.top, passing[p].t.top, log_s[p], log_t[p], call.k,
                          call.beta));
        }
      });
    }
    ISP_UNROLL for (int p = 0; p < kRows; ++p) {
      const Place here = place(p);
      if (!here.there) continue;
      Row row;
      row.top_s = row.best_s = passing[p].s.top, row.top_t = passing[p].t.top;
      row.label = here.label;
      Sums& sums = passing[p].sums;
      float value = settle<O>(row, sums, compared[0][p], compared[1][p], here.weight, call);
      if (call.cross_entropy) {
        if (row.label >= 0) {
          const Source of_y = source_of(up.y[0], y + p), of_x = source_of(up.x[0], x);
          sums.at_label = interpolated(call.student, n, row.label, of_y, of_x) - row.top_s;
        }
        value += settle_label(row, sums, here.label_weight, call);
      }
      if (!here.inside) value = 0;
      const int64_t number = pixel + p * up.width;
      if (call.row_losses != nullptr) call.row_losses[number] = value;
      loss += value;
      agreed += here.inside && passing[p].s.index == passing[p].t.index;
      leave_numbers<O>(up, number, row, here.inside);
    }
  }
  int64_t agreements = agreed;
  add_over_warp(loss, agreements);
  leave_part(call, at.memory, Team<1, 1, false>::warp(), threadIdx.x % 32 == 0, loss, agreements,
             up.pixels.width / 32);
}

}  // namespace isp_distill::cuda
