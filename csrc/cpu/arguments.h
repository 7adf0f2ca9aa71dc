// How operators check the tensors that they are handed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// Refuses a tensor whose storage was made smaller behind its back: it would be read beyond its end.
inline void check_storage(const torch::stable::Tensor& tensor, const char* name) {
  int64_t last = tensor.storage_offset(), bytes = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return;
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  STD_TORCH_CHECK(
      (last + 1) * static_cast<int64_t>(tensor.element_size()) <= bytes, name,
      " has a storage that is smaller than its shape says");
}

// Contiguous float32 of the given shape.
inline float* floats(
    const torch::stable::Tensor& tensor, std::vector<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  check_storage(tensor, name);
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

// A setting as one value of `shape` for each sample, one after the other: from a tensor of type `type`, of
// that shape, or with an axis of 1 or `batch` samples before it; of any strides. A single number is
// all of them.
template <class T>
std::vector<T> per_sample(
    const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type, int64_t batch,
    const std::vector<int64_t>& shape, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type, name, " has a wrong type");
  check_storage(tensor, name);
  const int64_t inner = static_cast<int64_t>(shape.size()), dim = tensor.dim();
  STD_TORCH_CHECK(dim == 0 || dim == inner || dim == inner + 1, name, " has a wrong rank");
  const bool each = dim == inner + 1;
  STD_TORCH_CHECK(
      !each || tensor.size(0) == 1 || tensor.size(0) == batch, name, " has a wrong batch");
  const int64_t step = each && tensor.size(0) != 1 ? tensor.stride(0) : 0;
  int64_t sizes[2] = {1, 1}, strides[2] = {0, 0};
  for (int64_t d = 0; d < inner; ++d) {
    sizes[2 - inner + d] = shape[d];
    if (dim == 0) continue;
    STD_TORCH_CHECK(tensor.size(d + each) == shape[d], name, " has a wrong size");
    strides[2 - inner + d] = tensor.stride(d + each);
  }
  const T* data = static_cast<const T*>(tensor.data_ptr());
  std::vector<T> values;
  values.reserve(batch * sizes[0] * sizes[1]);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        values.push_back(data[n * step + i * strides[0] + j * strides[1]]);
      }
    }
  }
  return values;
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

// What the codes of a mosaic of `batch` samples mean: [batch, L], or [1, L] for all of them.
inline Companding companding_of(
    const std::optional<torch::stable::Tensor>& linearise, int64_t batch, Element codes) {
  if (!linearise) return {nullptr, 0, 0};
  STD_TORCH_CHECK(linearise->dim() == 2 && linearise->size(1) > 0, "linearise must be [N, L]");
  const int64_t tables = linearise->size(0), length = linearise->size(1);
  STD_TORCH_CHECK(tables == 1 || tables == batch, "linearise must have a table for each sample");
  STD_TORCH_CHECK(
      codes == Element::uint8 || codes == Element::uint16 || codes == Element::int16 ||
          codes == Element::int32,
      "linearise takes codes, which are whole numbers");
  return {floats(*linearise, {tables, length}, "linearise"), tables == 1 ? 0 : length, length - 1};
}

}  // namespace isp_distill
