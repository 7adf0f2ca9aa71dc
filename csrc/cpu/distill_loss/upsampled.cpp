// The operator isp_distill_cpu::upsampled_distill_loss: checks, the tables of the interpolation,
// bands and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/distill_loss/call.h"
#include "cpu/distill_loss/interpolation.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(distill_upsampled, (const UpsampledCall&, int64_t, int64_t, float*))
ISP_DISTILL_DECLARE_KERNEL(distill_upsampled_edges, (const UpsampledCall&, int64_t, int64_t))

namespace {

Logits image_of(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), dtype_of(t), t.stride(1), t.stride(0), t.stride(2),
          t.stride(3)};
}

std::tuple<Tensor, Tensor> upsampled_distill_loss(
    Tensor student, Tensor teacher, int64_t height, int64_t width, bool align_corners,
    std::optional<Tensor> gradient, std::optional<Tensor> labels, std::optional<Tensor> mask,
    std::optional<Tensor> weight, Tensor factors, std::optional<Tensor> row_losses,
    int64_t objective, double parameter0, double parameter1, double temperature,
    bool cross_entropy, int64_t ignore_index, double label_smoothing, double gradient_scale) {
  for (const Tensor* tensor : {&student, &teacher}) {
    require(tensor->is_cpu() && tensor->dim() == 4 && tensor->numel() > 0,
            "logits must be [N, C, h, w] on the CPU");
    require(tensor->size(0) == student.size(0) && tensor->size(1) == student.size(1),
            "logits must have the same batch and classes");
  }
  require(height > 0 && width > 0, "the size must be positive");
  UpsampledCall up{};
  DistillCall& call = up.call;
  call.student = image_of(student), call.teacher = image_of(teacher);
  if (gradient) {
    require(gradient->is_cpu() && gradient->dim() == 4, "the gradient must be [N, C, h, w]");
    for (int64_t axis = 0; axis < 4; ++axis) {
      require(gradient->size(axis) == student.size(axis), "the gradient must be like the student");
    }
    call.gradient = image_of(*gradient);
  }
  call.classes = student.size(1);
  call.rows_per_sample = height * width;
  describe(call, {labels, mask, weight, factors},
           {objective, parameter0, parameter1, temperature, cross_entropy, ignore_index,
            label_smoothing, gradient_scale});
  up.batch = student.size(0), up.height = height, up.width = width;
  const int64_t rows = up.batch * height * width;
  for (const auto& tensor : {labels, mask, row_losses}) {
    require(!tensor || tensor->numel() == rows, "labels and mask must have one value for each pixel");
  }
  require(!weight || weight->numel() == up.batch, "weight must have one value a sample");
  if (row_losses) call.row_losses = static_cast<float*>(row_losses->data_ptr());
  up.student_height = student.size(2), up.student_width = student.size(3);
  up.teacher_height = teacher.size(2), up.teacher_width = teacher.size(3);
  const Table student_y(up.student_height, height, align_corners);
  const Table student_x(up.student_width, width, align_corners);
  const Table teacher_y(up.teacher_height, height, align_corners);
  const Table teacher_x(up.teacher_width, width, align_corners);
  up.student_y = student_y.view(), up.student_x = student_x.view();
  up.teacher_y = teacher_y.view(), up.teacher_x = teacher_x.view();

  // Bands of up to 16 rows, fewer where there would be less than 16 bands to share out.
  up.band = std::clamp<int64_t>(up.batch * up.student_height / 16, 1, 16);
  up.bands = (up.student_height + up.band - 1) / up.band;
  const int64_t tasks = up.batch * up.bands;
  const int64_t padded = (call.classes + 15) / 16 * 16, line = up.student_width * padded;
  std::vector<float> edges(gradient ? tasks * 2 * line : 0);
  up.edges = edges.data();
  std::vector<double> losses(tasks);
  std::vector<int64_t> agreements(tasks);
  call.task_losses = losses.data(), call.task_agreements = agreements.data();
  const int64_t workspace = 3 * line + 3 * up.teacher_width * padded + (gradient ? 3 * line : 0) +
                            strips_across(call);
  auto* kernel = ISP_DISTILL_KERNEL(distill_upsampled);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(workspace);
    kernel(up, begin, end, aligned(memory));
  });
  if (gradient) {
    auto* finish = ISP_DISTILL_KERNEL(distill_upsampled_edges);
    torch::stable::parallel_for(0, tasks, 1,
                                [&](int64_t begin, int64_t end) { finish(up, begin, end); });
  }
  return add_up(student, losses, agreements);
}

}  // namespace
}  // namespace isp_distill

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, library) {
  library.def(
      "upsampled_distill_loss(Tensor student, Tensor teacher, int height, int width, "
      "bool align_corners, Tensor(a!)? gradient, Tensor? labels, Tensor? mask, Tensor? weight, "
      "Tensor factors, Tensor(b!)? row_losses, int objective, float parameter0, "
      "float parameter1, float temperature, bool cross_entropy, int ignore_index, "
      "float label_smoothing, float gradient_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, library) {
  library.impl("upsampled_distill_loss", TORCH_BOX(&isp_distill::upsampled_distill_loss));
}
