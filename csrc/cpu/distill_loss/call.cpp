// The operators isp_distill_cpu::distill_loss and channel_distill_loss (cwd): checks, the layout of
// the logits, tasks and threads.
//
// A task is a fixed part of the rows, whatever the number of threads, and the tasks' losses are added
// up in their order: the result is the same on any machine with the same instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/distill_loss/call.h"
#include "cpu/distill_loss/positions.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(distill_across, (const DistillCall&, int64_t, int64_t, float*))
ISP_DISTILL_DECLARE_KERNEL(distill_down, (const DistillCall&, int64_t, int64_t, float*))

void require(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "distill_loss: ", what);
}

Dtype dtype_of(const Tensor& tensor, const char* what) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, what, " must be float32, bfloat16 or float16");
  }
}

void describe(DistillCall& call, const Rows& rows, const Settings& settings) {
  const auto contiguous = [&](const std::optional<Tensor>& tensor, ScalarType type) {
    return !tensor || (tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == type);
  };
  require(contiguous(rows.labels, ScalarType::Long), "labels must be contiguous int64");
  require(contiguous(rows.mask, ScalarType::Bool), "mask must be contiguous bool");
  require(contiguous(rows.weight, ScalarType::Float), "weight must be contiguous float32");
  require(rows.factors.is_cpu() && rows.factors.is_contiguous() && rows.factors.numel() == 2 &&
              rows.factors.scalar_type() == ScalarType::Double,
          "factors must be two float64");
  call.labels = rows.labels ? static_cast<const int64_t*>(rows.labels->data_ptr()) : nullptr;
  call.mask = rows.mask ? static_cast<const bool*>(rows.mask->data_ptr()) : nullptr;
  call.weight = rows.weight ? static_cast<const float*>(rows.weight->data_ptr()) : nullptr;
  const double* factors = static_cast<const double*>(rows.factors.data_ptr());
  call.factors[0] = factors[0], call.factors[1] = factors[1];
  require(settings.objective >= 0 && settings.objective <= 7, "unknown objective");
  require(!settings.cross_entropy || rows.labels, "cross entropy needs labels");
  call.objective = static_cast<Objective>(settings.objective);
  call.parameters[0] = static_cast<float>(settings.parameter0);
  call.parameters[1] = static_cast<float>(settings.parameter1);
  call.temperature = static_cast<float>(settings.temperature);
  call.cross_entropy = settings.cross_entropy;
  call.ignore_index = settings.ignore_index;
  call.label_smoothing = static_cast<float>(settings.label_smoothing);
  call.gradient_scale = static_cast<float>(settings.gradient_scale);
}

namespace {

int64_t strips(DistillCall& call, int64_t rows, int64_t lines, int64_t floats) {
  call.strip_rows = rows;
  call.pitch = 16 * (floats / 16 + (floats / 16 % 2 == 0));  // see strip.h
  return (call.cross_entropy ? 3 : 2) * lines * call.pitch + 20 * std::max<int64_t>(rows, 16) + 64;
}

}  // namespace

int64_t strips_down(DistillCall& call, int64_t pixels) {
  return strips(call, pixels, call.classes, pixels);
}

int64_t strips_across(DistillCall& call) {
  const int64_t padded = (call.classes + 15) / 16 * 16, floats = (int64_t{24} << 10) / 8;
  const int64_t rows = std::clamp<int64_t>(floats / padded, 1, 16);
  return strips(call, rows, rows, padded);
}

float* aligned(std::vector<float>& memory) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

std::tuple<Tensor, Tensor> add_up(const Tensor& like, const std::vector<double>& losses,
                                  const std::vector<int64_t>& agreements) {
  Tensor loss = torch::stable::new_empty(like, {}, ScalarType::Float);
  Tensor agreement = torch::stable::new_empty(like, {}, ScalarType::Long);
  double total = 0;
  int64_t count = 0;
  for (double x : losses) total += x;
  for (int64_t x : agreements) count += x;
  *static_cast<float*>(loss.data_ptr()) = static_cast<float>(total);
  *static_cast<int64_t*>(agreement.data_ptr()) = count;
  return {loss, agreement};
}

namespace {

Logits logits_of(const Tensor& tensor, const std::vector<int64_t>& strides) {
  return {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor), tensor.stride(1),
          strides[0], strides[1], strides[2]};
}

std::tuple<Tensor, Tensor> distill_loss(
    Tensor student, Tensor teacher, std::optional<Tensor> gradient, std::optional<Tensor> labels,
    std::optional<Tensor> mask, std::optional<Tensor> weight, Tensor factors,
    std::optional<Tensor> row_losses, int64_t objective, double parameter0, double parameter1,
    double temperature, bool cross_entropy, int64_t ignore_index, double label_smoothing,
    double gradient_scale) {
  std::vector<const Tensor*> tensors = {&student, &teacher};
  if (gradient) tensors.push_back(&*gradient);
  require(student.dim() >= 2, "logits must have at least two axes");
  for (const Tensor* tensor : tensors) {
    require(tensor->is_cpu() && tensor->dim() == student.dim(), "logits must match, on the CPU");
    for (int64_t axis = 0; axis < student.dim(); ++axis) {
      require(tensor->size(axis) == student.size(axis), "logits must have the same shape");
    }
  }
  const Positions positions = merge(tensors);
  require(positions.sizes.size() == 3, "logits have more than three separate axes of positions");

  DistillCall call{};
  call.student = logits_of(student, positions.strides[0]);
  call.teacher = logits_of(teacher, positions.strides[1]);
  if (gradient) call.gradient = logits_of(*gradient, positions.strides[2]);
  call.classes = student.size(1);
  call.size_n = positions.sizes[0], call.size_a = positions.sizes[1];
  call.size_b = positions.sizes[2];
  const int64_t rows = call.size_n * call.size_a * call.size_b;
  call.rows_per_sample = rows / student.size(0);
  describe(call, {labels, mask, weight, factors},
           {objective, parameter0, parameter1, temperature, cross_entropy, ignore_index,
            label_smoothing, gradient_scale});
  for (const auto& tensor : {labels, mask, row_losses}) {
    require(!tensor || tensor->numel() == rows, "labels and mask must have one value for each row");
  }
  require(!weight || weight->numel() == student.size(0), "weight must have one value a sample");
  if (row_losses) call.row_losses = static_cast<float*>(row_losses->data_ptr());

  // Streaming stores pay where the gradient will have left the caches before anybody reads it.
  const bool in_place = gradient && gradient->data_ptr() == student.data_ptr();
  if (gradient && !in_place && gradient->is_contiguous()) advise_huge_pages(*gradient);
  call.streaming = gradient && !in_place && rows * call.classes * 4 >= (int64_t{8} << 20);
  // Rows of few classes leave most lanes of a vector idle: those go down the strip, transposed.
  const bool across = call.student.stride_class == 1 &&
                      (call.classes >= 48 || call.student.stride_b != 1) && call.classes >= 12;
  int64_t tasks, workspace;
  if (across) {
    workspace = strips_across(call);
    call.pixels = std::max<int64_t>(1, 16384 / call.classes);
    tasks = (rows + call.pixels - 1) / call.pixels;
  } else {
    // This strip's buffers and the next strip's logits, which are fetched meanwhile, are to fit the
    // second-level cache together, 1 MB where there is AVX-512. Elsewhere it is smaller, but wide strips
    // visit fewer pages, each of which costs more on those processors: 54 ms, 46 with twice the width
    // (150 x 256^2, Zen 3).
    const int64_t bytes = int64_t{instruction_set() == InstructionSet::avx512 ? 192 : 384} << 10;
    const int64_t fitting = bytes / (8 * call.classes) / 64 * 64;
    call.pixels = std::clamp<int64_t>(fitting, 16, 512);
    call.pixels = std::min(call.pixels, (call.size_b + 15) / 16 * 16);
    tasks = call.size_n * call.size_a * ((call.size_b + call.pixels - 1) / call.pixels);
    workspace = strips_down(call, call.pixels);
  }
  std::vector<double> losses(tasks);
  std::vector<int64_t> agreements(tasks);
  call.task_losses = losses.data(), call.task_agreements = agreements.data();
  auto* kernel = across ? ISP_DISTILL_KERNEL(distill_across) : ISP_DISTILL_KERNEL(distill_down);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(workspace);
    kernel(call, begin, end, aligned(memory));
  });
  return add_up(student, losses, agreements);
}

// cwd: a row is one channel of one sample, its "classes" are the pixels inside the mask.
Tensor channel_distill_loss(Tensor student, Tensor teacher, std::optional<Tensor> gradient,
                            std::optional<Tensor> mask, std::optional<Tensor> weight,
                            Tensor factors, std::optional<Tensor> row_losses, double temperature,
                            double gradient_scale) {
  DistillCall call{};
  std::vector<const Tensor*> tensors = {&student, &teacher};
  if (gradient) tensors.push_back(&*gradient);
  for (size_t k = 0; k < tensors.size(); ++k) {
    const Tensor& tensor = *tensors[k];
    require(tensor.is_cpu() && tensor.dim() == 3, "logits must be [N, C, pixels] on the CPU");
    for (int64_t axis = 0; axis < 3; ++axis) {
      require(tensor.size(axis) == student.size(axis), "logits must have the same shape");
    }
    Logits& logits = k == 0 ? call.student : k == 1 ? call.teacher : call.gradient;
    logits = {static_cast<char*>(tensor.data_ptr()), dtype_of(tensor), tensor.stride(2), 0,
              tensor.stride(0), tensor.stride(1)};
  }
  const int64_t batch = student.size(0), channels = student.size(1), pixels = student.size(2);
  call.classes = pixels;
  call.size_n = 1, call.size_a = batch, call.size_b = channels;
  call.rows_per_sample = channels;
  describe(call, {std::nullopt, mask, weight, factors},
           {static_cast<int64_t>(Objective::forward_kl), 0, 0, temperature, false, -1, 0,
            gradient_scale});
  require(!mask || mask->numel() == batch * pixels, "mask must have one value for each pixel");
  require(!weight || weight->numel() == batch, "weight must have one value a sample");
  require(!row_losses || row_losses->numel() == batch * channels, "one loss for each channel");
  call.class_mask = call.mask, call.mask = nullptr;
  if (row_losses) call.row_losses = static_cast<float*>(row_losses->data_ptr());
  call.pixels = 1;  // rows of a task
  const int64_t tasks = batch * channels, workspace = strips_across(call);
  std::vector<double> losses(tasks);
  std::vector<int64_t> agreements(tasks);
  call.task_losses = losses.data(), call.task_agreements = agreements.data();
  auto* kernel = ISP_DISTILL_KERNEL(distill_across);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(workspace);
    kernel(call, begin, end, aligned(memory));
  });
  return std::get<0>(add_up(student, losses, agreements));
}

}  // namespace
}  // namespace isp_distill

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, library) {
  library.def(
      "distill_loss(Tensor student, Tensor teacher, Tensor(a!)? gradient, Tensor? labels, "
      "Tensor? mask, Tensor? weight, Tensor factors, Tensor(b!)? row_losses, int objective, "
      "float parameter0, float parameter1, float temperature, bool cross_entropy, "
      "int ignore_index, float label_smoothing, float gradient_scale) -> (Tensor, Tensor)");
  library.def(
      "channel_distill_loss(Tensor student, Tensor teacher, Tensor(a!)? gradient, Tensor? mask, "
      "Tensor? weight, Tensor factors, Tensor(b!)? row_losses, float temperature, "
      "float gradient_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, library) {
  library.impl("distill_loss", TORCH_BOX(&isp_distill::distill_loss));
  library.impl("channel_distill_loss", TORCH_BOX(&isp_distill::channel_distill_loss));
}
