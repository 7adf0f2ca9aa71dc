// What both operators of the distillation loss make of their arguments: checks, and the call.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/distill_loss/call.h"

namespace isp_distill::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void require(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "distill_loss on CUDA: ", what);
}

inline Dtype dtype_of(const Tensor& logits) {
  const ScalarType type = logits.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
          "logits must be float32, bfloat16 or float16");
  return type == ScalarType::Float      ? Dtype::float32
         : type == ScalarType::BFloat16 ? Dtype::bfloat16
                                        : Dtype::float16;
}

// Logits [N, C, A, B].
inline Logits logits_of(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), dtype_of(t), t.stride(1), t.stride(0), t.stride(2),
          t.stride(3)};
}

template <class T>
T* rows_of(const std::optional<Tensor>& tensor, const Tensor& like, ScalarType type, int64_t count,
           const char* what) {
  if (!tensor) return nullptr;
  require(tensor->is_cuda() && tensor->get_device_index() == like.get_device_index() &&
              tensor->scalar_type() == type && tensor->is_contiguous() && tensor->numel() == count,
          what);
  return static_cast<T*>(tensor->data_ptr());
}

// Both operators' arguments but for logits and sizes, in the order of their schemas.
struct LossArguments {
  const std::optional<Tensor>&labels, &mask, &weight;
  const Tensor& factors;
  const std::optional<Tensor>& row_losses;
  int64_t objective;
  double beta, temperature;
  bool cross_entropy;
  int64_t ignore_index;
  double smoothing, gradient_scale;
};

// Enters logits [N, C, A, B] of any size, rows and numbers into a call, whose sizes are the caller's.
inline Objective describe(LossCall& call, const Tensor& student, const Tensor& teacher,
                          const std::optional<Tensor>& gradient, const LossArguments& given,
                          int64_t rows_per_sample) {
  std::vector<const Tensor*> tensors = {&student, &teacher};
  if (gradient) tensors.push_back(&*gradient);
  for (const Tensor* tensor : tensors) {
    require(tensor->is_cuda() && tensor->get_device_index() == student.get_device_index() &&
                tensor->dim() == 4,
            "logits must be [N, C, A, B] on one GPU");
    require(tensor->numel() > 0 && tensor->size(0) == student.size(0) &&
                tensor->size(1) == student.size(1),
            "there must be logits, of the same batch and classes");
  }
  require(student.size(1) < (int64_t{1} << 31), "too many classes");
  call.student = logits_of(student), call.teacher = logits_of(teacher);
  if (gradient) call.gradient = logits_of(*gradient);
  call.classes = student.size(1), call.size_n = student.size(0);
  call.rows_per_sample = rows_per_sample;
  const int64_t rows = call.size_n * rows_per_sample;
  call.labels =
      rows_of<int64_t>(given.labels, student, ScalarType::Long, rows, "labels: int64, one a row");
  call.mask = rows_of<uint8_t>(given.mask, student, ScalarType::Byte, rows, "mask: uint8, one a row");
  call.weight = rows_of<float>(given.weight, student, ScalarType::Float, call.size_n,
                               "weight: float32, one a sample");
  call.factors =
      rows_of<double>(given.factors, student, ScalarType::Double, 2, "factors: two float64");
  call.row_losses = rows_of<float>(given.row_losses, student, ScalarType::Float, rows,
                                   "row_losses: float32, one a row");
  const auto wanted = static_cast<Objective>(given.objective);
  require(wanted == Objective::none || wanted == Objective::forward_kl ||
              wanted == Objective::reverse_kl || wanted == Objective::jsd || wanted == Objective::mse,
          "no kernel for this objective");
  require(!given.cross_entropy || call.labels != nullptr, "cross entropy needs labels");
  call.cross_entropy = given.cross_entropy, call.ignore_index = given.ignore_index;
  call.k = static_cast<float>(1.4426950408889634 / given.temperature);
  call.temperature = static_cast<float>(given.temperature);
  call.beta = static_cast<float>(given.beta);
  call.smoothing = static_cast<float>(given.smoothing);
  call.smoothing_of_class = call.smoothing / static_cast<float>(call.classes);
  call.gradient_scale = static_cast<float>(given.gradient_scale);
  return wanted;
}

// Places for each block's loss and agreements, which come into the call.
inline std::tuple<Tensor, Tensor> parts_for(LossCall& call, const Tensor& like, int64_t blocks) {
  require(blocks < (int64_t{1} << 31), "too many rows for one launch");
  Tensor losses = torch::stable::new_empty(like, {blocks}, ScalarType::Double);
  Tensor agreements = torch::stable::new_empty(like, {blocks}, ScalarType::Long);
  call.losses = static_cast<double*>(losses.data_ptr());
  call.agreements = static_cast<int64_t*>(agreements.data_ptr());
  return {losses, agreements};
}

inline cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void require_launched() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "distill_loss on CUDA: ", cudaGetErrorString(error));
}

}  // namespace isp_distill::cuda
