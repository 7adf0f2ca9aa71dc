// What the operators of the feature loss share: the checks of their arguments, and how they end.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/feature_loss/call.h"

namespace isp_distill {

using torch::stable::Tensor;

struct FeatureTensors {
  const std::optional<Tensor>&mean, &scale, &mask, &weight;
  const Tensor& factors;
  const std::optional<Tensor>& row_losses;
};

struct FeatureSettings {
  int64_t elements, normalise;
  double cosine_share, element_share, beta, gradient_scale;
};

// Throws std::runtime_error where `holds` is false.
void check_features(bool holds, const char* what);

// A tensor's memory; `strides` are of (n, a, b).
Logits features_of(const Tensor& tensor, const std::vector<int64_t>& strides);

// Checks the arguments and enters them into a call whose channels are known. `statistics` holds what the
// call points to.
void enter(FeatureCall& call, std::vector<float>& statistics, int64_t rows,
           const FeatureTensors& tensors, const FeatureSettings& settings);

// Loss and mean cosine of all tasks, added up in their order.
std::tuple<Tensor, Tensor> feature_sums(const Tensor& like, const std::vector<double>& losses,
                                        const std::vector<double>& similarities);

}  // namespace isp_distill
