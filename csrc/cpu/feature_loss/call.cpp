// The operator isp_distill_cpu::feature_loss: checks, the layout of the features, tasks and threads.
//
// A task is a fixed part of the rows, whatever the number of threads, and the tasks' losses are added
// up in their order: the result is the same on any machine with the same instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/distill_loss/positions.h"
#include "cpu/feature_loss/arguments.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(feature_across, (const FeatureCall&, int64_t, int64_t, float*))
ISP_DISTILL_DECLARE_KERNEL(feature_down, (const FeatureCall&, int64_t, int64_t, float*))

namespace {

std::tuple<Tensor, Tensor> feature_loss(
    Tensor student, Tensor teacher, std::optional<Tensor> gradient, std::optional<Tensor> mean,
    std::optional<Tensor> scale, std::optional<Tensor> mask, std::optional<Tensor> weight,
    Tensor factors, std::optional<Tensor> row_losses, int64_t elements, int64_t normalise,
    double cosine_share, double element_share, double beta, double gradient_scale) {
  std::vector<const Tensor*> tensors = {&student, &teacher};
  if (gradient) tensors.push_back(&*gradient);
  check_features(student.dim() >= 2 && student.numel() > 0, "features must be [N, D, ...] and not empty");
  for (const Tensor* tensor : tensors) {
    check_features(tensor->is_cpu() && tensor->dim() == student.dim(), "features must match, on the CPU");
    for (int64_t axis = 0; axis < student.dim(); ++axis) {
      check_features(tensor->size(axis) == student.size(axis), "features must have the same shape");
    }
  }
  const Positions positions = merge(tensors);
  check_features(positions.sizes.size() == 3, "features have more than three separate axes of positions");

  FeatureCall call{};
  call.student = features_of(student, positions.strides[0]);
  call.teacher = features_of(teacher, positions.strides[1]);
  if (gradient) call.gradient = features_of(*gradient, positions.strides[2]);
  call.channels = student.size(1);
  call.size_n = positions.sizes[0], call.size_a = positions.sizes[1];
  call.size_b = positions.sizes[2];
  const int64_t rows = call.size_n * call.size_a * call.size_b;
  std::vector<float> statistics;
  enter(call, statistics, rows, {mean, scale, mask, weight, factors, row_losses},
        {elements, normalise, cosine_share, element_share, beta, gradient_scale});

  // Streaming stores pay where the gradient will have left the caches before anybody reads it.
  if (gradient && gradient->is_contiguous()) advise_huge_pages(*gradient);
  call.streaming = gradient && rows * call.channels * 4 >= (int64_t{8} << 20);
  const bool across = call.channels >= 12 && call.student.stride_class == 1 &&
                      (call.channels >= 48 || call.student.stride_b != 1);
  int64_t tasks, workspace;
  if (across) {
    call.rows = std::max<int64_t>(1, 16384 / call.channels);
    tasks = (rows + call.rows - 1) / call.rows;
    workspace = 2 * ((call.channels + 15) / 16 * 16);
  } else {
    const int64_t fitting = (int64_t{384} << 10) / (8 * call.channels) / 16 * 16;
    call.rows = std::clamp<int64_t>(fitting, 16, 256);
    call.rows = std::min(call.rows, (call.size_b + 15) / 16 * 16);
    tasks = call.size_n * call.size_a * ((call.size_b + call.rows - 1) / call.rows);
    workspace = 12 * call.rows + 2 * call.channels * (call.rows + 16);
  }
  std::vector<double> losses(tasks), similarities(tasks);
  call.task_losses = losses.data(), call.task_similarities = similarities.data();
  auto* kernel = across ? ISP_DISTILL_KERNEL(feature_across) : ISP_DISTILL_KERNEL(feature_down);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Buffer memory = allocate(workspace);
    kernel(call, begin, end, memory.get());
  });
  return feature_sums(student, losses, similarities);
}

}  // namespace
}  // namespace isp_distill

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, library) {
  library.def(
      "feature_loss(Tensor student, Tensor teacher, Tensor(a!)? gradient, Tensor? mean, "
      "Tensor? scale, Tensor? mask, Tensor? weight, Tensor factors, Tensor(b!)? row_losses, "
      "int elements, int normalise, float cosine_share, float element_share, float beta, "
      "float gradient_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, library) {
  library.impl("feature_loss", TORCH_BOX(&isp_distill::feature_loss));
}
