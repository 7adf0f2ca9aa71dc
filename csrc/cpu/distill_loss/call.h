// What the operators of the distillation loss share: their rows and settings, brought into a call.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/distill_loss/call.h"

namespace isp_distill {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Rows {
  std::optional<Tensor> labels, mask, weight;  // int64, bool, float32; contiguous
  Tensor factors;                              // [2], float64
};

struct Settings {
  int64_t objective;
  double parameter0, parameter1, temperature;
  bool cross_entropy;
  int64_t ignore_index;
  double label_smoothing, gradient_scale;
};

// Throws std::runtime_error where `holds` is false.
void require(bool holds, const char* what);

// `what` begins the error for any other dtype.
Dtype dtype_of(const Tensor& tensor, const char* what = "distill_loss: logits");

// Checks rows and settings and enters them into the call.
void describe(DistillCall& call, const Rows& rows, const Settings& settings);

// Strips of pixels, classes one below the other; and strips of as many rows as the first-level cache
// holds, their classes side by side (strip.h). Both return what one thread needs for a strip, in floats.
int64_t strips_down(DistillCall& call, int64_t pixels);
int64_t strips_across(DistillCall& call);

// The first float of `memory` at the start of a cache line.
float* aligned(std::vector<float>& memory);

// Loss and agreement of all tasks, added up in their order.
std::tuple<Tensor, Tensor> add_up(const Tensor& like, const std::vector<double>& losses,
                                  const std::vector<int64_t>& agreements);

}  // namespace isp_distill
