// The axes of positions that the tensors of a loss share, merged where their strides allow.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace isp_distill {

using torch::stable::Tensor;

// Positions of the logits, without the class axis: neighbouring axes that every tensor steps through
// in one stride are one axis. At most three may remain.
struct Positions {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> strides;  // of each tensor
};

inline Positions merge(const std::vector<const Tensor*>& tensors) {
  Positions merged;
  merged.strides.resize(tensors.size());
  for (int64_t axis = 0; axis < tensors[0]->dim(); ++axis) {
    const int64_t size = tensors[0]->size(axis);
    if (axis == 1 || size == 1) continue;
    bool joins = !merged.sizes.empty();
    for (size_t k = 0; k < tensors.size() && joins; ++k) {
      joins = merged.strides[k].back() == size * tensors[k]->stride(axis);
    }
    if (joins) {
      merged.sizes.back() *= size;
    } else {
      merged.sizes.push_back(size);
    }
    for (size_t k = 0; k < tensors.size(); ++k) {
      if (!joins) merged.strides[k].push_back(0);
      merged.strides[k].back() = tensors[k]->stride(axis);
    }
  }
  while (merged.sizes.size() < 3) {
    merged.sizes.insert(merged.sizes.begin(), 1);
    for (auto& strides : merged.strides) strides.insert(strides.begin(), 0);
  }
  return merged;
}

}  // namespace isp_distill
