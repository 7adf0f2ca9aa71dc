// The operator isp_distill_cpu::resampled_feature_loss: checks, the tables of the interpolation, bands
// and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/feature_loss/arguments.h"
#include "cpu/feature_loss/bands.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(feature_resampled, (const ResampledCall&, int64_t, int64_t, float*))
ISP_DISTILL_DECLARE_KERNEL(feature_resampled_rows, (const ResampledCall&, int64_t, int64_t))

namespace {

Logits map_of(const Tensor& t) { return features_of(t, {t.stride(0), t.stride(2), t.stride(3)}); }

std::tuple<Tensor, Tensor> resampled_feature_loss(
    Tensor student, Tensor teacher, int64_t height, int64_t width, std::optional<Tensor> gradient,
    std::optional<Tensor> mean, std::optional<Tensor> scale, std::optional<Tensor> mask,
    std::optional<Tensor> weight, Tensor factors, std::optional<Tensor> row_losses,
    int64_t elements, int64_t normalise, double cosine_share, double element_share, double beta,
    double gradient_scale) {
  for (const Tensor* tensor : {&student, &teacher}) {
    check_features(tensor->is_cpu() && tensor->dim() == 4 && tensor->numel() > 0,
                   "maps must be [N, D, h, w] on the CPU, and not empty");
    check_features(tensor->size(0) == student.size(0) && tensor->size(1) == student.size(1),
                   "maps must have the same batch and channels");
  }
  check_features(height > 0 && width > 0, "the size must be positive");
  ResampledCall of{};
  FeatureCall& call = of.call;
  call.student = map_of(student), call.teacher = map_of(teacher);
  if (gradient) {
    check_features(gradient->is_cpu() && gradient->dim() == 4, "the gradient must be [N, D, h, w]");
    for (int64_t axis = 0; axis < 4; ++axis) {
      check_features(gradient->size(axis) == student.size(axis),
                     "the gradient must be like the student");
    }
    call.gradient = map_of(*gradient);
  }
  const int64_t batch = student.size(0), rows = batch * height * width;
  call.channels = student.size(1);
  std::vector<float> statistics;
  enter(call, statistics, rows, {mean, scale, mask, weight, factors, row_losses},
        {elements, normalise, cosine_share, element_share, beta, gradient_scale});

  of.height = height, of.width = width;
  of.student_height = student.size(2), of.student_width = student.size(3);
  of.teacher_height = teacher.size(2), of.teacher_width = teacher.size(3);
  of.student_as_it_is = of.student_height == height && of.student_width == width;
  of.teacher_as_it_is = of.teacher_height == height && of.teacher_width == width;
  const Table student_y(of.student_height, height, false), student_x(of.student_width, width, false);
  const Table teacher_y(of.teacher_height, height, false), teacher_x(of.teacher_width, width, false);
  of.student_y = student_y.view(), of.student_x = student_x.view();
  of.teacher_y = teacher_y.view(), of.teacher_x = teacher_x.view();
  const Bands student_bands(student_x, of.student_width, false);
  const Bands teacher_bands(teacher_x, of.teacher_width, false);
  const Bands gradient_bands(student_x, of.student_width, true);
  of.student_bands = student_bands.data(), of.teacher_bands = teacher_bands.data();
  of.gradient_bands = gradient_bands.data();

  // Up to eight buffers of a strip in the second-level cache, or little beyond: the columns of a row are
  // shared out evenly, since each strip spreads its part of the maps anew.
  const int64_t fitting = (int64_t{1536} << 10) / (32 * call.channels) / 16 * 16;
  const int64_t most = std::clamp<int64_t>(fitting, 16, 256), strips = (width + most - 1) / most;
  call.rows = ((width + strips - 1) / strips + 15) / 16 * 16;
  // Bands of up to 16 rows, fewer where there would be less than 16 bands to share out.
  of.band = std::min(std::clamp<int64_t>(batch * of.student_height / 16, 1, 16), of.student_height);
  of.bands = (of.student_height + of.band - 1) / of.band;
  const int64_t tasks = batch * of.bands, buffer = call.channels * (call.rows + 16);
  Buffer gradient_rows(nullptr);
  if (gradient) {
    const int64_t padded = (of.student_width + 15) / 16 * 16;
    const int64_t count = tasks * (of.band + 1) * call.channels * padded;
    gradient_rows = allocate(count);
    advise_huge_pages(gradient_rows.get(), count * 4);
    if (gradient->is_contiguous()) advise_huge_pages(*gradient);
    of.gradient_rows = gradient_rows.get();
  }
  std::vector<double> losses(tasks), similarities(tasks);
  call.task_losses = losses.data(), call.task_similarities = similarities.data();
  const int64_t lines = of.student_width + of.teacher_width + 64;
  auto* kernel = ISP_DISTILL_KERNEL(feature_resampled);
  for_each(tasks, 12 * call.rows + 8 * buffer + lines,
           [&](int64_t task, float* memory) { kernel(of, task, task + 1, memory); });
  if (gradient) {
    auto* finish = ISP_DISTILL_KERNEL(feature_resampled_rows);
    torch::stable::parallel_for(0, tasks, 1,
                                [&](int64_t begin, int64_t end) { finish(of, begin, end); });
  }
  return feature_sums(student, losses, similarities);
}

}  // namespace
}  // namespace isp_distill

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, library) {
  library.def(
      "resampled_feature_loss(Tensor student, Tensor teacher, int height, int width, "
      "Tensor(a!)? gradient, Tensor? mean, Tensor? scale, Tensor? mask, Tensor? weight, "
      "Tensor factors, Tensor(b!)? row_losses, int elements, int normalise, float cosine_share, "
      "float element_share, float beta, float gradient_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, library) {
  library.impl("resampled_feature_loss", TORCH_BOX(&isp_distill::resampled_feature_loss));
}
