// One call of the feature loss, as the kernels see it: pointers, strides and numbers.
//
// A feature's channels are what a logit's classes are: `Logits` describes both.
#pragma once

#include "common/distill_loss/call.h"

namespace isp_distill {

// In the order of isp_distill/ops/feature_loss/cpu.py.
enum class Elements { none, mse, smooth_l1 };
enum class Normalise { none, l2, layer, teacher };

// Of isp_distill/ops/reference_feature_loss.py.
constexpr float kNormFloor = 1e-6f, kLayerEpsilon = 1e-5f;

struct FeatureCall {
  Logits student, teacher, gradient;  // gradient.data is null where none is wanted
  int64_t channels, size_n, size_a, size_b;
  const bool* mask;         // one for each row, in the order of (n, a, b), or null
  const float* weight;      // one for each `rows_per_weight` rows, or null
  int64_t rows_per_weight;
  const float *mean, *scale;  // of Normalise::teacher: (x - mean) * scale, one for each channel
  float* row_losses;          // one for each row, or null where they are summed
  double *task_losses, *task_similarities;  // one for each task, summed by the caller in order
  Elements elements;
  Normalise normalise;
  float cosine_share, element_share, beta, gradient_scale;
  double factors[2];  // of a row's loss and of its cosine
  bool streaming;
  int64_t rows;  // of a task; of a strip, where it is a multiple of 16
};

}  // namespace isp_distill
