// Bilinear interpolation along an axis as products of small dense blocks, for kernels that compute
// sixteen results at once: each block of results needs a short range of inputs, every one of them with a
// weight for each result, most of them 0.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/distill_loss/interpolation.h"
#include "cpu/feature_loss/call.h"

namespace isp_distill {

class Bands {
 public:
  // From `in` columns to what `table` makes of them; or, transposed, back from there.
  Bands(const Table& table, int64_t in, bool transposed) {
    const int64_t out = static_cast<int64_t>(table.first.size());
    const int64_t results = transposed ? in : out, inputs = transposed ? out : in;
    struct Entry {
      int64_t result, input;
      float weight;
    };
    std::vector<std::vector<Entry>> entries((results + 15) / 16);
    const auto add = [&](int64_t column, int64_t of, float weight) {
      const int64_t result = transposed ? column : of, input = transposed ? of : column;
      entries[result / 16].push_back({result, input, weight});
    };
    for (int64_t i = 0; i < out; ++i) {
      add(table.first[i], i, 1 - table.second[i]);
      if (table.second[i] != 0) add(table.first[i] + 1, i, table.second[i]);
    }
    std::vector<size_t> starts;
    for (const auto& block : entries) {
      int64_t low = inputs, high = 0;
      for (const Entry& entry : block) {
        low = std::min(low, entry.input), high = std::max(high, entry.input + 1);
      }
      low = std::min(low, high);
      starts.push_back(weights_.size());
      weights_.resize(weights_.size() + (high - low) * 16);
      for (const Entry& entry : block) {
        weights_[starts.back() + (entry.input - low) * 16 + entry.result % 16] += entry.weight;
      }
      bands_.push_back({low, high, nullptr});
    }
    for (size_t i = 0; i < bands_.size(); ++i) bands_[i].weights = weights_.data() + starts[i];
  }
  Bands(const Bands&) = delete;

  const Band* data() const { return bands_.data(); }

 private:
  std::vector<Band> bands_;
  std::vector<float> weights_;
};

}  // namespace isp_distill
