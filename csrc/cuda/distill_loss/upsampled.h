// The distillation loss at full resolution of low-resolution logits, and its gradient down there.
//
// Two kernels, neither of which writes anything of the size of full-resolution logits:
//   upsampled_pixels.h  each pixel's loss, and the few numbers (4, 8 or 12, whatever the number
//                               of classes) that its gradient needs beside the logits
//   upsampled_cells.h   the gradient of the student's cells, if it is wanted
// Both interpolate logits from cells in shared memory or registers. Floor: four exponentials for each
// class of a pixel, two in either kernel; memory sees the low resolution only.
#pragma once

#include "cuda/distill_loss/upsampled_cells.h"
#include "cuda/distill_loss/upsampled_pixels.h"

namespace isp_distill::cuda {

// Calls launch(kernel, blocks, threads, bytes of shared memory) with the kernels of a call.
template <Objective O, class Launch>
void launch_upsampled_objective(const UpsampledLoss& up, Launch&& launch) {
  launch(upsampled_pixels<O>, pixel_blocks(up), up.pixels.width, up.pixels.bytes);
  if (up.call.gradient.data == nullptr) return;
  const auto cells = [&](auto* kernel) {
    launch(kernel, cell_blocks(up), up.cells.threads, up.cells.bytes);
  };
  if (up.call.cross_entropy) return cells(upsampled_cells<O, true>);
  if constexpr (O != Objective::none) cells(upsampled_cells<O, false>);
}

template <class Launch>
void launch_upsampled(Objective objective, const UpsampledLoss& up, Launch&& launch) {
  switch (objective) {
    case Objective::none:
      return launch_upsampled_objective<Objective::none>(up, launch);
    case Objective::forward_kl:
      return launch_upsampled_objective<Objective::forward_kl>(up, launch);
    case Objective::reverse_kl:
      return launch_upsampled_objective<Objective::reverse_kl>(up, launch);
    case Objective::jsd:
      return launch_upsampled_objective<Objective::jsd>(up, launch);
    default:
      return launch_upsampled_objective<Objective::mse>(up, launch);
  }
}

}  // namespace isp_distill::cuda
