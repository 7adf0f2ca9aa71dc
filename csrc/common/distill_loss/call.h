// One call of the distillation loss, as the kernels see it: pointers, strides and numbers.
#pragma once

#include <stdint.h>

namespace isp_distill {

enum class Dtype { float32, bfloat16, float16 };

// `none` is cross entropy alone (alpha = 0).
enum class Objective { none, forward_kl, reverse_kl, jsd, tvd, dkd, mse, binary_kl };

// Logits or their gradient. A row's position is (n, a, b); strides count elements.
struct Logits {
  char* data;
  Dtype dtype;
  int64_t stride_class, stride_n, stride_a, stride_b;
};

struct DistillCall {
  Logits student, teacher, gradient;  // gradient.data is null where none is wanted
  int64_t classes, size_n, size_a, size_b;
  int64_t rows_per_sample;
  const int64_t* labels;   // one for each row, in the order of (n, a, b), or null
  const bool* mask;        // alike
  const float* weight;     // one for each sample, or null
  const bool* class_mask;  // one for each class of each sample, or null: cwd, whose classes are pixels
  float* row_losses;       // one for each row, or null where they are summed
  double* task_losses;     // one for each task, summed by the caller in a fixed order
  int64_t* task_agreements;
  Objective objective;
  bool cross_entropy, streaming;
  int64_t ignore_index;
  float parameters[2];
  float temperature, label_smoothing, gradient_scale;
  double factors[2];  // of the objective and of cross entropy: alpha and the reduction
  int64_t pixels;      // rows of a task
  int64_t strip_rows;  // rows of a strip (strip.h): down a multiple of 16, across up to 16
  int64_t pitch;       // of a strip
};

// Bilinear interpolation along one axis: output i is in[first[i]] (1 - second[i]) + in[first[i] + 1]
// second[i], where second is 0 if there is no next one.
struct Interpolation {
  const int64_t* first;
  const float* second;
};

// The loss at full resolution of logits [N, C, h, w]; in their strides, (n, a, b) is (n, y, x).
// The rows of `call` are the pixels of the full resolution.
struct UpsampledCall {
  DistillCall call;
  int64_t batch, height, width;  // of the full resolution
  int64_t student_height, student_width, teacher_height, teacher_width;
  Interpolation student_y, student_x, teacher_y, teacher_x;
  int64_t band, bands;  // student rows of a task, tasks of a sample
  float* edges;         // [batch, bands, 2, student_width, padded classes]
};

}  // namespace isp_distill
