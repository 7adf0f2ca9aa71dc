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

// Sixteen results of an interpolation: of the inputs [low, high), each with a weight for every result.
struct Band {
  int64_t low, high;
  const float* weights;  // [high - low, 16]
};

// The loss at another resolution of maps [N, D, h, w]; in their strides, (n, a, b) is (n, y, x). The rows
// of `call` are the positions of that resolution.
struct ResampledCall {
  FeatureCall call;
  int64_t height, width;  // of that resolution
  int64_t student_height, student_width, teacher_height, teacher_width;
  bool student_as_it_is, teacher_as_it_is;  // whether a map has that resolution already
  Interpolation student_y, student_x, teacher_y, teacher_x;
  const Band *student_bands, *teacher_bands;  // one for each 16 columns of that resolution
  const Band* gradient_bands;                 // and back, one for each 16 columns of the student
  int64_t band, bands;   // student rows of a task, tasks of a sample
  float* gradient_rows;  // [N, bands, band + 1, D, student_width filled up to 16], or null
};

}  // namespace isp_distill
