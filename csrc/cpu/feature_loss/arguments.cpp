#include "cpu/feature_loss/arguments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/distill_loss/call.h"

namespace isp_distill {

using torch::headeronly::ScalarType;

void check_features(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "feature_loss: ", what);
}

Logits features_of(const Tensor& tensor, const std::vector<int64_t>& strides) {
  return {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor, "feature_loss: features"),
          tensor.stride(1), strides[0], strides[1], strides[2]};
}

void enter(FeatureCall& call, std::vector<float>& statistics, int64_t rows,
           const FeatureTensors& tensors, const FeatureSettings& settings) {
  const auto& [mean, scale, mask, weight, factors, row_losses] = tensors;
  const auto& [elements, normalise, cosine_share, element_share, beta, gradient_scale] = settings;
  check_features(elements >= 0 && elements <= 2 && normalise >= 0 && normalise <= 3,
                 "unknown objective");
  call.elements = static_cast<Elements>(elements);
  call.normalise = static_cast<Normalise>(normalise);
  call.cosine_share = static_cast<float>(cosine_share);
  call.element_share = static_cast<float>(element_share);
  call.beta = static_cast<float>(beta);
  call.gradient_scale = static_cast<float>(gradient_scale);
  check_features((call.normalise == Normalise::teacher) == (mean && scale),
                 "mean and scale are of teacher");
  // Filled up: kernels read whole vectors of them.
  const int64_t padded = (call.channels + 15) / 16 * 16;
  statistics.resize(scale ? 2 * padded : 0);
  if (scale) {
    std::copy_n(floats(*scale, {call.channels}, "scale"), call.channels, statistics.data());
    std::copy_n(floats(*mean, {call.channels}, "mean"), call.channels, statistics.data() + padded);
    call.scale = statistics.data(), call.mean = statistics.data() + padded;
  }
  check_features(!mask || (mask->is_cpu() && mask->is_contiguous() && mask->numel() == rows &&
                           mask->scalar_type() == ScalarType::Bool),
                 "mask must be contiguous bool, a value a row");
  check_features(!weight || (weight->is_cpu() && weight->is_contiguous() &&
                             weight->scalar_type() == ScalarType::Float && weight->numel() > 0 &&
                             rows % weight->numel() == 0),
                 "weight must be contiguous float32, a value a sample or a row");
  check_features(factors.is_cpu() && factors.is_contiguous() && factors.numel() == 2 &&
                     factors.scalar_type() == ScalarType::Double,
                 "factors must be two float64");
  check_features(!row_losses || (row_losses->is_cpu() && row_losses->is_contiguous() &&
                                 row_losses->numel() == rows &&
                                 row_losses->scalar_type() == ScalarType::Float),
                 "row_losses must be contiguous float32, a value a row");
  call.mask = mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
  call.weight = weight ? static_cast<const float*>(weight->data_ptr()) : nullptr;
  call.rows_per_weight = weight ? rows / weight->numel() : 1;
  const double* given = static_cast<const double*>(factors.data_ptr());
  call.factors[0] = given[0], call.factors[1] = given[1];
  if (row_losses) call.row_losses = static_cast<float*>(row_losses->data_ptr());
}

std::tuple<Tensor, Tensor> feature_sums(const Tensor& like, const std::vector<double>& losses,
                                        const std::vector<double>& similarities) {
  Tensor loss = torch::stable::new_empty(like, {}, ScalarType::Float);
  Tensor similarity = torch::stable::new_empty(like, {}, ScalarType::Float);
  double total = 0, cosine = 0;
  for (double x : losses) total += x;
  for (double x : similarities) cosine += x;
  *static_cast<float*>(loss.data_ptr()) = static_cast<float>(total);
  *static_cast<float*>(similarity.data_ptr()) = static_cast<float>(cosine);
  return {loss, similarity};
}

}  // namespace isp_distill
