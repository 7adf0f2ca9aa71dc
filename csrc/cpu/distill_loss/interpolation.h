// Bilinear interpolation along one axis, as tables that kernels read.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/distill_loss/call.h"

namespace isp_distill {

// Where torch.nn.functional.interpolate(mode="bilinear") takes each output from.
struct Table {
  std::vector<int64_t> first;
  std::vector<float> second;

  Table(int64_t in, int64_t out, bool align_corners) : first(out), second(out) {
    for (int64_t i = 0; i < out; ++i) {
      double source;
      if (align_corners) {
        source = out > 1 ? i * (static_cast<double>(in - 1) / (out - 1)) : 0;
      } else {
        source = std::max((i + 0.5) * in / out - 0.5, 0.0);
      }
      first[i] = std::min(static_cast<int64_t>(std::floor(source)), in - 1);
      second[i] = first[i] + 1 < in ? static_cast<float>(source - first[i]) : 0.0f;
    }
  }

  Interpolation view() const { return {first.data(), second.data()}; }
};

}  // namespace isp_distill
