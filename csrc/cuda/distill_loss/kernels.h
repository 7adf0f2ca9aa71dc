// The kernels of the distillation loss.
//
// held      the classes of a row stay in registers: the logits are read once, the gradient written
//           once. A warp or a block has one row whose classes are neighbours in memory; of dense
//           logits a block has 32 pixels, neighbours in memory, and its warps share out the classes.
// streamed  a row of more classes than fit: an online softmax reads the row, and once more for the
//           gradient (for jsd twice more), when the second-level cache still has it.
// Every block leaves its part of the loss and of the agreements: no atomics, so no order of blocks.
#pragma once

#include "cuda/distill_loss/memory.h"

namespace isp_distill::cuda {

inline constexpr int kLossShared = 8 * 4 * kPixels * 4 + 8 * 16;

// The first of a thread's rows; the others are its next neighbours along the last axis.
struct Start {
  int64_t row, n, a, b;
};
ISP_DEVICE Start start_at(const LossCall& call, int64_t outer, int64_t b) {
  return {outer * call.size_b + b, outer / call.size_a, outer % call.size_a, b};
}
ISP_DEVICE int64_t offset_of(const Logits& logits, const Start& start) {
  return start.n * logits.stride_n + start.a * logits.stride_a + start.b * logits.stride_b;
}

// Whether a row is there and counts, its label (-1: none) and its weights.
struct Place {
  bool there, inside;
  int label;
  float weight, label_weight;
};
ISP_DEVICE Place place_of(const LossCall& call, int64_t row, bool there) {
  Place place = {there, there && (call.mask == nullptr || call.mask[row] != 0), -1, 0, 0};
  if (!place.inside) return place;
  const float w = call.weight == nullptr ? 1.0f : call.weight[row / call.rows_per_sample];
  place.weight = static_cast<float>(call.factors[0]) * w;
  if (call.labels == nullptr) return place;
  const int64_t label = call.labels[row];
  if (label == call.ignore_index) return place;
  // A label that is no class is not looked up; nothing here can raise, so the row's loss becomes NaN.
  const bool exists = label >= 0 && label < call.classes;
  place.label = exists ? static_cast<int>(label) : -1;
  place.label_weight = exists ? static_cast<float>(call.factors[1]) * w : float_of(0x7fc00000u);
  return place;
}

// Adds up what the block's warps (in lane 0) or, of dense logits, first lanes found.
ISP_DEVICE void leave_part(const LossCall& call, char* memory, int slot, bool writes, double loss,
                           int64_t agreed, int slots) {
  double* losses = reinterpret_cast<double*>(memory);
  int64_t* agreements = reinterpret_cast<int64_t*>(memory) + 8;
  if (writes) losses[slot] = loss, agreements[slot] = agreed;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  int64_t count = 0;
  for (int i = 0; i < slots; ++i) all += losses[i], count += agreements[i];
  call.losses[blockIdx.x] = all, call.agreements[blockIdx.x] = count;
}

// How a block of `held` shares out its logits: V vectors of N values a thread, of P rows.
template <Shape S>
struct Tile {
  static constexpr bool kDense = S == Shape::dense || S == Shape::few_dense;
  static constexpr int P = kDense ? 4 : 1, N = kDense ? 4 : 8;
  static constexpr int V = S == Shape::dense ? 5 : S == Shape::few_dense ? 1 : 2;
  static constexpr int kThreads = S == Shape::warp_rows ? 32 : kLossThreads;
  using Threads = Team<P, kDense ? 8 : 1, S != Shape::warp_rows>;

  // Of value i of vector v. Of rows that cannot be moved in vectors, threads take turns.
  static ISP_DEVICE int class_of(int v, int i, bool aligned) {
    const int thread = static_cast<int>(threadIdx.x) % kThreads;
    if constexpr (kDense) return v * 32 + thread / 8;
    return aligned ? (v * kThreads + thread) * 8 + i : (v * 8 + i) * kThreads + thread;
  }

  static ISP_DEVICE void load(const LossCall& call, const Logits& logits, const Start& start,
                              const Place (&places)[P], float (&x)[V][N]) {
    const int64_t base = offset_of(logits, start);
    ISP_UNROLL for (int v = 0; v < V; ++v) {
      ISP_UNROLL for (int i = 0; i < N; ++i) x[v][i] = minus_infinity();
      if (call.aligned) {
        const int index = class_of(v, 0, true);
        const bool there = kDense ? places[0].there : places[0].inside;
        if (there && index < call.classes) {
          load_vector<N>(logits, base + index * logits.stride_class, x[v]);
        }
      } else {
        ISP_UNROLL for (int i = 0; i < N; ++i) {
          const int index = class_of(v, i, false), p = kDense ? i % P : 0;
          const bool there = kDense ? places[p].there : places[p].inside;
          if (!there || index >= call.classes) continue;
          x[v][i] = load_one(logits, base + p * logits.stride_b + index * logits.stride_class);
        }
      }
      // Pixels are read together, whether they count or not.
      ISP_UNROLL for (int i = 0; i < N; ++i) {
        const bool counts = places[kDense ? i % P : 0].inside;
        if (!counts) x[v][i] = class_of(v, i, call.aligned) < call.classes ? 0.0f : minus_infinity();
      }
    }
  }
};

template <Objective O, Shape S>
ISP_KERNEL(S == Shape::dense ? 1 : 2) held(const LossCall call) {
  using T = Tile<S>;
  constexpr int P = T::P, N = T::N, V = T::V;
  char* memory = shared_memory();
  const typename T::Threads threads{reinterpret_cast<float*>(memory)};
  const int lane = T::Threads::lane(), warp = T::Threads::warp();

  Place places[P];
  Start start;
  if constexpr (T::kDense) {
    const int64_t across = (call.size_b + kPixels - 1) / kPixels;
    const int64_t b = blockIdx.x % across * kPixels + lane % 8 * P;
    start = start_at(call, blockIdx.x / across, b);
    ISP_UNROLL for (int p = 0; p < P; ++p) {
      places[p] = place_of(call, start.row + p, b + p < call.size_b);
    }
  } else {
    const int64_t number = S == Shape::warp_rows ? int64_t(blockIdx.x) * 8 + warp : blockIdx.x;
    const bool there = number < call.size_n * call.size_a * call.size_b;
    start = start_at(call, there ? number / call.size_b : 0, there ? number % call.size_b : 0);
    places[0] = place_of(call, start.row, there);
  }
  float s[V][N], t[V][N];
  T::load(call, call.student, start, places, s);
  T::load(call, call.teacher, start, places, t);

  Choice choices[2][P];
  ISP_UNROLL for (int p = 0; p < P; ++p) choices[0][p] = choices[1][p] = {minus_infinity(), 0x7fffffff};
  ISP_UNROLL for (int v = 0; v < V; ++v) {
    ISP_UNROLL for (int i = 0; i < N; ++i) {
      const int p = T::kDense ? i % P : 0, index = T::class_of(v, i, call.aligned);
      choices[0][p] = better(choices[0][p], {s[v][i], index});
      choices[1][p] = better(choices[1][p], {t[v][i], index});
    }
  }
  threads.best(choices);

  Row rows[P];
  Sums sums[P];
  ISP_UNROLL for (int p = 0; p < P; ++p) {
    rows[p].top_s = rows[p].best_s = choices[0][p].top, rows[p].top_t = choices[1][p].top;
    rows[p].label = places[p].label;
  }
  ISP_UNROLL for (int v = 0; v < V; ++v) {
    ISP_UNROLL for (int i = 0; i < N; ++i) {
      const int p = T::kDense ? i % P : 0, index = T::class_of(v, i, call.aligned);
      add_class<O>(sums[p], s[v][i], t[v][i], rows[p].top_s, rows[p].top_t, call.k);
      if (call.cross_entropy) {
        add_class_label(sums[p], s[v][i], index == rows[p].label, rows[p].best_s);
      }
    }
  }
  float parts[3][P];
  if constexpr (O != Objective::none) {
    ISP_UNROLL for (int p = 0; p < P; ++p) {
      parts[0][p] = sums[p].s, parts[1][p] = sums[p].t, parts[2][p] = sums[p].mixed;
    }
    threads.sum(parts);
    ISP_UNROLL for (int p = 0; p < P; ++p) {
      sums[p].s = parts[0][p], sums[p].t = parts[1][p], sums[p].mixed = parts[2][p];
    }
  }
  if (call.cross_entropy) {
    ISP_UNROLL for (int p = 0; p < P; ++p) {
      parts[0][p] = sums[p].total, parts[1][p] = sums[p].plain, parts[2][p] = sums[p].at_label;
    }
    threads.sum(parts);
    ISP_UNROLL for (int p = 0; p < P; ++p) {
      sums[p].total = parts[0][p], sums[p].plain = parts[1][p], sums[p].at_label = parts[2][p];
    }
  }
  float compared[2][P] = {};
  if constexpr (O == Objective::jsd) {
    ISP_UNROLL for (int v = 0; v < V; ++v) {
      ISP_UNROLL for (int i = 0; i < N; ++i) {
        const int p = T::kDense ? i % P : 0;
        compare(compared[0][p], compared[1][p],
                mixture(s[v][i], t[v][i], rows[p].top_s, rows[p].top_t, log_2(sums[p].s),
                        log_2(sums[p].t), call.k, call.beta));
      }
    }
    threads.sum(compared);
  }

  double loss = 0;
  int64_t agreed = 0;
  const bool writes = T::kDense ? threadIdx.x < 8 : S == Shape::warp_rows ? lane == 0 : threadIdx.x == 0;
  ISP_UNROLL for (int p = 0; p < P; ++p) {
    float value = settle<O>(rows[p], sums[p], compared[0][p], compared[1][p], places[p].weight, call);
    if (call.cross_entropy) value += settle_label(rows[p], sums[p], places[p].label_weight, call);
    if (!places[p].inside) value = 0;
    if (writes && places[p].there && call.row_losses != nullptr) {
      call.row_losses[start.row + p] = value;
    }
    loss += value;
    agreed += places[p].inside && choices[0][p].index == choices[1][p].index;
  }
  const int slot = T::kDense ? lane : warp;
  leave_part(call, memory + kLossShared - 128, slot, writes, loss, agreed,
             S == Shape::block_row ? 1 : 8);

  if (call.gradient.data == nullptr) return;
  // Where the gradient takes the student's place each thread overwrites what it alone has read.
  const int64_t base = offset_of(call.gradient, start);
  ISP_UNROLL for (int v = 0; v < V; ++v) {
    float g[N];
    ISP_UNROLL for (int i = 0; i < N; ++i) {
      const int p = T::kDense ? i % P : 0, index = T::class_of(v, i, call.aligned);
      g[i] = places[p].inside ? gradient_of<O>(rows[p], s[v][i], t[v][i], index, call) : 0.0f;
      if (call.aligned || !places[p].there || index >= call.classes) continue;
      const int64_t at = base + p * call.gradient.stride_b + index * call.gradient.stride_class;
      store_one(call.gradient, at, g[i]);
    }
    const int index = T::class_of(v, 0, call.aligned);
    if (call.aligned && places[0].there && index < call.classes) {
      store_vector<N>(call.gradient, base + index * call.gradient.stride_class, g);
    }
  }
}

// Eight classes of a row from `index` on: neighbours, or (not aligned) those of every thread's turn.
ISP_DEVICE void load_classes(const LossCall& call, const Logits& logits, int64_t start, int64_t index,
                             float (&x)[8]) {
  if (call.aligned) return load_vector<8>(logits, start + index, x);
  ISP_UNROLL for (int i = 0; i < 8; ++i) {
    const int64_t at = index + i * kLossThreads;
    x[i] = at < call.classes ? load_one(logits, start + at) : minus_infinity();
  }
}

template <Objective O>
ISP_KERNEL(2) streamed(const LossCall call) {
  char* memory = shared_memory();
  const Team<1, 1, true> threads{reinterpret_cast<float*>(memory)};
  const Start start = start_at(call, blockIdx.x / call.size_b, blockIdx.x % call.size_b);
  const Place place = place_of(call, start.row, true);
  const int64_t of_s = offset_of(call.student, start), of_t = offset_of(call.teacher, start);
  const int64_t first = call.aligned ? int64_t(threadIdx.x) * 8 : threadIdx.x;
  const int64_t turn = 8 * kLossThreads, apart = call.aligned ? 1 : kLossThreads;
  const int64_t classes = place.inside ? call.classes : 0;

  Passing passing;
  for (int64_t index = first; index < classes; index += turn) {
    float s[8], t[8];
    load_classes(call, call.student, of_s, index, s);
    load_classes(call, call.teacher, of_t, index, t);
    pass_by<O>(passing, s, t, static_cast<int>(index), static_cast<int>(apart), call);
  }
  Choice choices[2][1] = {{passing.s}, {passing.t}};
  threads.best(choices);
  Row row;
  row.top_s = row.best_s = choices[0][0].top, row.top_t = choices[1][0].top, row.label = place.label;
  raise_to<O>(passing, row.top_s, row.top_t, call);
  Sums& sums = passing.sums;
  float parts[3][1] = {{sums.s}, {sums.t}, {sums.mixed}};
  threads.sum(parts);
  sums.s = parts[0][0], sums.t = parts[1][0], sums.mixed = parts[2][0];
  if (call.cross_entropy) {
    float labels[2][1] = {{sums.total}, {sums.plain}};
    threads.sum(labels);
    sums.total = labels[0][0], sums.plain = labels[1][0];
    if (row.label >= 0) sums.at_label = load_one(call.student, of_s + row.label) - row.top_s;
  }
  float compared[2][1] = {};
  if constexpr (O == Objective::jsd) {
    const float log_s = log_2(sums.s), log_t = log_2(sums.t);
    for (int64_t index = first; index < classes; index += turn) {
      float s[8], t[8];
      load_classes(call, call.student, of_s, index, s);
      load_classes(call, call.teacher, of_t, index, t);
      ISP_UNROLL for (int i = 0; i < 8; ++i) {
        compare(compared[0][0], compared[1][0],
                mixture(s[i], t[i], row.top_s, row.top_t, log_s, log_t, call.k, call.beta));
      }
    }
    threads.sum(compared);
  }
  float value = settle<O>(row, sums, compared[0][0], compared[1][0], place.weight, call);
  if (call.cross_entropy) value += settle_label(row, sums, place.label_weight, call);
  if (!place.inside) value = 0;
  if (threadIdx.x == 0 && call.row_losses != nullptr) call.row_losses[start.row] = value;
  // The barrier in here parts the reading of the label's logit from a gradient in its place.
  leave_part(call, memory + kLossShared - 128, 0, threadIdx.x == 0, value,
             place.inside && choices[0][0].index == choices[1][0].index, 1);

  if (call.gradient.data == nullptr) return;
  const int64_t of_g = offset_of(call.gradient, start);
  for (int64_t index = first; index < call.classes; index += turn) {
    float s[8], t[8], g[8];
    if (place.inside) {
      load_classes(call, call.student, of_s, index, s);
      load_classes(call, call.teacher, of_t, index, t);
    }
    ISP_UNROLL for (int i = 0; i < 8; ++i) {
      const int at = static_cast<int>(index + i * apart);
      g[i] = place.inside ? gradient_of<O>(row, s[i], t[i], at, call) : 0.0f;
      if (!call.aligned && at < call.classes) store_one(call.gradient, of_g + at, g[i]);
    }
    if (call.aligned) store_vector<8>(call.gradient, of_g + index, g);
  }
}

// Calls launch(kernel) with the kernel of a call.
template <Objective O, class Launch>
void launch_objective(Shape shape, Launch&& launch) {
  switch (shape) {
    case Shape::warp_rows:
      return launch(held<O, Shape::warp_rows>);
    case Shape::block_row:
      return launch(held<O, Shape::block_row>);
    case Shape::streamed_row:
      return launch(streamed<O>);
    case Shape::few_dense:
      return launch(held<O, Shape::few_dense>);
    default:
      return launch(held<O, Shape::dense>);
  }
}

template <class Launch>
void launch_kernel(Objective objective, Shape shape, Launch&& launch) {
  switch (objective) {
    case Objective::none:
      return launch_objective<Objective::none>(shape, launch);
    case Objective::forward_kl:
      return launch_objective<Objective::forward_kl>(shape, launch);
    case Objective::reverse_kl:
      return launch_objective<Objective::reverse_kl>(shape, launch);
    case Objective::jsd:
      return launch_objective<Objective::jsd>(shape, launch);
    default:
      return launch_objective<Objective::mse>(shape, launch);
  }
}

}  // namespace isp_distill::cuda
