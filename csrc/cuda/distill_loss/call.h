// One call of the distillation loss as its CUDA kernels see it, checked already.
#pragma once

#include "common/distill_loss/call.h"

namespace isp_distill::cuda {

// A row is a position (n, a, b) of the logits; row number (n size_a + a) size_b + b.
struct LossCall {
  Logits student, teacher, gradient;  // gradient.data is null where none is wanted
  int64_t classes, size_n, size_a, size_b, rows_per_sample;
  const int64_t* labels;  // one for each row, or null
  const uint8_t* mask;    // alike
  const float* weight;    // one for each sample, or null
  const double* factors;  // two, on the device: of the objective and of cross entropy
  float* row_losses;      // one for each row, or null
  double* losses;         // one for each block, added up by the caller in a fixed order
  int64_t* agreements;    // alike
  bool cross_entropy;
  bool aligned;  // neighbours of every tensor can be moved 16 bytes (of a 16-bit dense one: 8) at a time
  int64_t ignore_index;
  float k, temperature, beta, smoothing, gradient_scale;  // k: log2(e) / temperature
  float smoothing_of_class;  // smoothing / classes
};

inline constexpr int kLossThreads = 256;
// Classes of a row that a warp, a block hold in registers; classes of dense logits held by a block.
inline constexpr int kWarpClasses = 512, kBlockClasses = 4096, kFewDense = 32, kMostDense = 160;
// Pixels that a block takes of dense logits.
inline constexpr int kPixels = 32;

enum class Shape { warp_rows, block_row, streamed_row, few_dense, dense, none };

// How a call is computed; `none` where no kernel takes it.
inline Shape shape_of(const LossCall& call) {
  const bool rows = call.student.stride_class == 1 && call.teacher.stride_class == 1 &&
                    (call.gradient.data == nullptr || call.gradient.stride_class == 1);
  if (rows) {
    return call.classes <= kWarpClasses    ? Shape::warp_rows
           : call.classes <= kBlockClasses ? Shape::block_row
                                           : Shape::streamed_row;
  }
  return call.classes <= kFewDense    ? Shape::few_dense
         : call.classes <= kMostDense ? Shape::dense
                                      : Shape::none;
}

inline int64_t blocks_of(const LossCall& call, Shape shape) {
  const int64_t others = call.size_n * call.size_a;
  switch (shape) {
    case Shape::warp_rows:
      return (others * call.size_b + 7) / 8;
    case Shape::block_row:
    case Shape::streamed_row:
      return others * call.size_b;
    default:
      return others * ((call.size_b + kPixels - 1) / kPixels);
  }
}

// Whether a block's neighbours can be moved in vectors: their number, addresses and steps allow it. The
// step along an axis of one is not looked at, it is never taken: views [N, C, 1, 1] have 1 there.
inline bool aligned(const LossCall& call, Shape shape) {
  const bool dense = shape == Shape::few_dense || shape == Shape::dense;
  const int64_t unit = dense ? 4 : 8;
  if ((dense ? call.size_b : call.classes) % unit) return false;
  for (const Logits* logits : {&call.student, &call.teacher, &call.gradient}) {
    if (logits->data == nullptr) continue;
    const int64_t bytes = dense ? 4 * (logits->dtype == Dtype::float32 ? 4 : 2) : 16;
    if (reinterpret_cast<uintptr_t>(logits->data) % bytes) return false;
    if ((dense ? logits->stride_b : logits->stride_class) != 1) return false;
    const auto steps = [unit](int64_t size, int64_t stride) {
      return size == 1 || stride % unit == 0;
    };
    if (!steps(call.size_n, logits->stride_n) || !steps(call.size_a, logits->stride_a)) return false;
    if (!(dense ? steps(call.classes, logits->stride_class) : steps(call.size_b, logits->stride_b))) {
      return false;
    }
  }
  return true;
}

}  // namespace isp_distill::cuda
