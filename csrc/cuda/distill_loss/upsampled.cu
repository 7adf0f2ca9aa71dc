// The operator isp_distill_cuda::upsampled_distill_loss: the tiles, the launches.
#include "cuda/distill_loss/arguments.h"
#include "cuda/distill_loss/upsampled.h"

namespace isp_distill::cuda {
namespace {

// Loss and agreement of each block; at full resolution [height, width] of logits [N, C, h, w].
std::tuple<Tensor, Tensor> upsampled_distill_loss(
    Tensor student, Tensor teacher, int64_t height, int64_t width, bool align_corners,
    std::optional<Tensor> gradient, std::optional<Tensor> labels, std::optional<Tensor> mask,
    std::optional<Tensor> weight, Tensor factors, std::optional<Tensor> row_losses,
    int64_t objective, double beta, double temperature, bool cross_entropy, int64_t ignore_index,
    double smoothing, double gradient_scale) {
  constexpr int64_t most = int64_t{1} << 31;
  require(height > 0 && width > 0 && height < most && width < most, "the size must be positive");
  UpsampledLoss up{};
  const Objective wanted =
      describe(up.call, student, teacher, gradient,
               {labels, mask, weight, factors, row_losses, objective, beta, temperature,
                cross_entropy, ignore_index, smoothing, gradient_scale},
               height * width);
  const int64_t of_student[2] = {student.size(2), student.size(3)};
  const int64_t of_teacher[2] = {teacher.size(2), teacher.size(3)};
  require(!gradient || (gradient->size(2) == of_student[0] && gradient->size(3) == of_student[1]),
          "the gradient must be like the student");
  require(student.size(0) < most, "too large a batch");
  up.batch = static_cast<int>(student.size(0));
  up.height = static_cast<int>(height), up.width = static_cast<int>(width);
  require(plan_upsampled(up, of_student, of_teacher, align_corners, wanted),
          "no tile of these sizes fits shared memory");
  const auto parts = parts_for(up.call, factors, pixel_blocks(up));
  std::optional<Tensor> numbers;  // alive until both kernels are in the stream
  if (gradient) {
    require(cell_blocks(up) < most, "too many cells for one launch");
    numbers = torch::stable::new_empty(factors, {up.batch, height, width, up.words},
                                       ScalarType::Float);
    up.numbers = static_cast<float*>(numbers->data_ptr());
  }
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  const cudaStream_t stream = stream_of(student);
  launch_upsampled(wanted, up, [&](auto* kernel, int64_t blocks, int threads, int bytes) {
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(up);
    require_launched();
  });
  return parts;
}

}  // namespace
}  // namespace isp_distill::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cuda, library) {
  library.def(
      "upsampled_distill_loss(Tensor student, Tensor teacher, int height, int width, "
      "bool align_corners, Tensor(a!)? gradient, Tensor? labels, Tensor? mask, Tensor? weight, "
      "Tensor factors, Tensor(b!)? row_losses, int objective, float beta, float temperature, "
      "bool cross_entropy, int ignore_index, float smoothing, float gradient_scale) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cuda, CUDA, library) {
  library.impl("upsampled_distill_loss", TORCH_BOX(&isp_distill::cuda::upsampled_distill_loss));
}
