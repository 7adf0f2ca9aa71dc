// The operator isp_distill_cuda::distill_loss: checks, the layout of the logits, the launch.
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

#include "cuda/distill_kernels.h"

namespace isp_distill::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void require(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "distill_loss on CUDA: ", what);
}

Dtype dtype_of(const Tensor& logits) {
  const ScalarType type = logits.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
          "logits must be float32, bfloat16 or float16");
  return type == ScalarType::Float      ? Dtype::float32
         : type == ScalarType::BFloat16 ? Dtype::bfloat16
                                        : Dtype::float16;
}

// Logits [N, C, A, B].
Logits logits_of(const Tensor& t) {
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

// Loss and agreement of each block.
std::tuple<Tensor, Tensor> distill_loss(
    Tensor student, Tensor teacher, std::optional<Tensor> gradient, std::optional<Tensor> labels,
    std::optional<Tensor> mask, std::optional<Tensor> weight, Tensor factors,
    std::optional<Tensor> row_losses, int64_t objective, double beta, double temperature,
    bool cross_entropy, int64_t ignore_index, double smoothing, double gradient_scale) {
  std::vector<const Tensor*> tensors = {&student, &teacher};
  if (gradient) tensors.push_back(&*gradient);
  for (const Tensor* tensor : tensors) {
    require(tensor->is_cuda() && tensor->get_device_index() == student.get_device_index() &&
                tensor->dim() == 4,
            "logits must be [N, C, A, B] on one GPU");
    for (int64_t axis = 0; axis < 4; ++axis) {
      require(tensor->size(axis) == student.size(axis), "logits must have the same shape");
    }
  }
  require(student.numel() > 0 && student.size(1) < (int64_t{1} << 31), "there must be logits");
  LossCall call{};
  call.student = logits_of(student), call.teacher = logits_of(teacher);
  if (gradient) call.gradient = logits_of(*gradient);
  call.classes = student.size(1), call.size_n = student.size(0);
  call.size_a = student.size(2), call.size_b = student.size(3);
  call.rows_per_sample = call.size_a * call.size_b;
  const int64_t rows = call.size_n * call.rows_per_sample;
  call.labels = rows_of<int64_t>(labels, student, ScalarType::Long, rows, "labels: int64, one a row");
  call.mask = rows_of<uint8_t>(mask, student, ScalarType::Byte, rows, "mask: uint8, one a row");
  call.weight = rows_of<float>(weight, student, ScalarType::Float, call.size_n,
                               "weight: float32, one a sample");
  call.factors = rows_of<double>(factors, student, ScalarType::Double, 2, "factors: two float64");
  call.row_losses =
      rows_of<float>(row_losses, student, ScalarType::Float, rows, "row_losses: float32, one a row");
  const auto wanted = static_cast<Objective>(objective);
  require(wanted == Objective::none || wanted == Objective::forward_kl ||
              wanted == Objective::reverse_kl || wanted == Objective::jsd || wanted == Objective::mse,
          "no kernel for this objective");
  require(!cross_entropy || call.labels != nullptr, "cross entropy needs labels");
  call.cross_entropy = cross_entropy, call.ignore_index = ignore_index;
  call.k = static_cast<float>(1.4426950408889634 / temperature);
  call.temperature = static_cast<float>(temperature), call.beta = static_cast<float>(beta);
  call.smoothing = static_cast<float>(smoothing);
  call.gradient_scale = static_cast<float>(gradient_scale);
  const Shape shape = shape_of(call);
  require(shape != Shape::none, "too many classes that are no neighbours in memory");
  call.aligned = aligned(call, shape);
  const int64_t blocks = blocks_of(call, shape);
  require(blocks < (int64_t{1} << 31), "too many rows for one launch");

  Tensor losses = torch::stable::new_empty(factors, {blocks}, ScalarType::Double);
  Tensor agreements = torch::stable::new_empty(factors, {blocks}, ScalarType::Long);
  call.losses = static_cast<double*>(losses.data_ptr());
  call.agreements = static_cast<int64_t*>(agreements.data_ptr());
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(student.get_device_index(), &stream));
  launch_kernel(wanted, shape, [&](auto* kernel) {
    kernel<<<static_cast<unsigned>(blocks), kLossThreads, kLossShared,
             static_cast<cudaStream_t>(stream)>>>(call);
  });
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "distill_loss on CUDA: ", cudaGetErrorString(error));
  return {losses, agreements};
}

}  // namespace
}  // namespace isp_distill::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cuda, library) {
  library.def(
      "distill_loss(Tensor student, Tensor teacher, Tensor(a!)? gradient, Tensor? labels, "
      "Tensor? mask, Tensor? weight, Tensor factors, Tensor(b!)? row_losses, int objective, "
      "float beta, float temperature, bool cross_entropy, int ignore_index, float smoothing, "
      "float gradient_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cuda, CUDA, library) {
  library.impl("distill_loss", TORCH_BOX(&isp_distill::cuda::distill_loss));
}
