// The operator isp_distill_cuda::distill_loss: the layout of the logits, the launch.
#include "cuda/distill_loss/arguments.h"
#include "cuda/distill_loss/kernels.h"

namespace isp_distill::cuda {
namespace {

// Loss and agreement of each block.
std::tuple<Tensor, Tensor> distill_loss(
    Tensor student, Tensor teacher, std::optional<Tensor> gradient, std::optional<Tensor> labels,
    std::optional<Tensor> mask, std::optional<Tensor> weight, Tensor factors,
    std::optional<Tensor> row_losses, int64_t objective, double beta, double temperature,
    bool cross_entropy, int64_t ignore_index, double smoothing, double gradient_scale) {
  LossCall call{};
  require(student.dim() == 4, "logits must be [N, C, A, B] on one GPU");
  const Objective wanted =
      describe(call, student, teacher, gradient,
               {labels, mask, weight, factors, row_losses, objective, beta, temperature,
                cross_entropy, ignore_index, smoothing, gradient_scale},
               student.size(2) * student.size(3));
  for (int64_t axis = 2; axis < 4; ++axis) {
    require(teacher.size(axis) == student.size(axis) &&
                (!gradient || gradient->size(axis) == student.size(axis)),
            "logits must have the same shape");
  }
  call.size_a = student.size(2), call.size_b = student.size(3);
  const Shape shape = shape_of(call);
  require(shape != Shape::none, "too many classes that are no neighbours in memory");
  call.aligned = aligned(call, shape);
  const int64_t blocks = blocks_of(call, shape);
  const auto parts = parts_for(call, factors, blocks);
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  const cudaStream_t stream = stream_of(student);
  launch_kernel(wanted, shape, [&](auto* kernel) {
    kernel<<<static_cast<unsigned>(blocks), kLossThreads, kLossShared, stream>>>(call);
  });
  require_launched();
  return parts;
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
