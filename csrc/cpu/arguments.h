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

// How the codes of a mosaic of `width` pixels a row are packed, by the number that Python gives. Those that
// are packed are bytes, and the kernels read them as uint16.
inline Packing packing_of(const torch::stable::Tensor& mosaic, int64_t packing, int64_t width) {
  STD_TORCH_CHECK(packing >= 0 && packing <= 6, "unknown packing");
  STD_TORCH_CHECK(width % 2 == 0, "odd mosaic");
  if (packing == 0) {
    STD_TORCH_CHECK(mosaic.size(2) == width, "width is the mosaic's own where it is not packed");
    return Packing::none;
  }
  STD_TORCH_CHECK(
      mosaic.scalar_type() == torch::headeronly::ScalarType::Byte, "a packed mosaic must be uint8");
  constexpr int64_t pixels[] = {4, 2, 4, 4, 2, 2}, bytes[] = {5, 3, 7, 5, 3, 3};
  const int64_t group = pixels[packing - 1];
  STD_TORCH_CHECK(
      width > 0 && (width + group - 1) / group <= mosaic.size(2) / bytes[packing - 1],
      "the rows of the mosaic are too short for their width");
  return static_cast<Packing>(packing);
}

}  // namespace isp_distill
