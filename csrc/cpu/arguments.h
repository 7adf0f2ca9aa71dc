// How operators check the tensors that they are handed.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/element.h"

namespace isp_distill {

inline Element element_of(const torch::stable::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Byte:
      return Element::uint8;
    case torch::headeronly::ScalarType::UInt16:
      return Element::uint16;
    case torch::headeronly::ScalarType::Short:
      return Element::int16;
    case torch::headeronly::ScalarType::Int:
      return Element::int32;
    case torch::headeronly::ScalarType::Half:
      return Element::float16;
    case torch::headeronly::ScalarType::BFloat16:
      return Element::bfloat16;
    case torch::headeronly::ScalarType::Float:
      return Element::float32;
    case torch::headeronly::ScalarType::Double:
      return Element::float64;
    default:
      STD_TORCH_CHECK(false, name, " has a type that the kernels do not take");
  }
}

// Contiguous float32 of the given shape.
inline float* floats(
    const torch::stable::Tensor& tensor, std::vector<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(shape.size()), name, " has a wrong rank");
  for (size_t d = 0; d < shape.size(); ++d) {
    STD_TORCH_CHECK(tensor.size(d) == shape[d], name, " has a wrong size");
  }
  return static_cast<float*>(tensor.data_ptr());
}

inline float* floats(
    const std::optional<torch::stable::Tensor>& tensor, std::vector<int64_t> shape,
    const char* name) {
  return tensor ? floats(*tensor, std::move(shape), name) : nullptr;
}

}  // namespace isp_distill
