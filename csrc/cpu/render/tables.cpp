// The tables of the render operator.
#include "cpu/render/tables.h"

#include <algorithm>
#include <cmath>

namespace isp_distill {

// ------------------------------------------------------------------------------------ tone curves

namespace {

// The curve as a function of what its parabolas are in: x, or its square root (gamma).
double tone_of(Tone tone, double x) {
  if (tone != Tone::srgb) return std::pow(x, 2 / 2.2);
  return x < 0.0031308 ? 12.92 * x : 1.055 * std::pow(x, 1 / 2.4) - 0.055;
}

}  // namespace

// Only AVX-512 reads them; the others compute (power.h).
//
// Each parabola meets the curve at the three Chebyshev nodes of its segment. The largest error on [0, 1]
// is 2.1e-5 for sRGB (a twelfth of a 12-bit step), 4.2e-6 for gamma and 5.1e-6 for smoothstep;
// tests/test_render_kernels.py measures it.
std::vector<float> tone_table(Tone tone) {
  std::vector<float> table(3 * kSegments, 0.0f);
  if (tone == Tone::linear || tone == Tone::log) return table;
  const double offset = kSegmentOffset, scale = kSegmentScale;
  constexpr int kSteps = 1 << (23 - kSegmentShift);  // segments of an octave
  for (int s = 0; s < kSegments; ++s) {
    const double octave = std::ldexp(offset, s / kSteps);
    const double low = (octave * (1 + double(s % kSteps) / kSteps) - offset) / scale;
    const double high = (octave * (1 + double(s % kSteps + 1) / kSteps) - offset) / scale;
    // From here on in Newton's form: f[0], f[0, 1] and f[0, 1, 2].
    double x[3], f[3];
    for (int k = 0; k < 3; ++k) {
      const double node = std::cos((2 * k + 1) * 3.14159265358979323846 / 6);
      x[k] = 0.5 * (low + high) + 0.5 * (high - low) * node;
      f[k] = tone_of(tone, x[k]);
    }
    const double first = (f[1] - f[0]) / (x[1] - x[0]);
    const double square = ((f[2] - f[1]) / (x[2] - x[1]) - first) / (x[2] - x[0]);
    const double linear = first - square * (x[0] + x[1]);
    // 2^-8 has the biased exponent 119, and the table is as long as its index repeats.
    const int at = (119 * kSteps + s) % kSegments;
    table[at] = static_cast<float>(f[0] - x[0] * (linear + square * x[0]));
    table[kSegments + at] = static_cast<float>(linear);
    table[2 * kSegments + at] = static_cast<float>(square);
  }
  return table;
}

// ----------------------------------------------------------------------------------------- resize

// As torch's upsample_bilinear2d_aa: a triangle as wide as the reduction, cut and renormalised at the
// borders; where the picture grows, a triangle of one source element, which is plain interpolation.
TapsTable::TapsTable(int64_t source, int64_t target)
    : begin(target), end(target), source(source), target(target) {
  constexpr int64_t kVector = 16;  // the kernels read whole vectors of weights
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double support = std::max(scale, 1.0);
  int64_t most = 0;
  for (int64_t i = 0; i < target; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    begin[i] = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    end[i] = std::min(static_cast<int64_t>(centre + support + 0.5), source);
    most = std::max(most, end[i] - begin[i]);
  }
  stride = (most + kVector - 1) / kVector * kVector;
  exact.resize(static_cast<size_t>(target * stride), 0.0);
  for (int64_t i = 0; i < target; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    const int64_t count = end[i] - begin[i];
    double* w = exact.data() + i * stride;
    double total = 0;
    for (int64_t k = 0; k < count; ++k) {
      const double distance = std::abs(static_cast<double>(begin[i] + k) + 0.5 - centre);
      w[k] = std::max(1.0 - distance / support, 0.0);
      total += w[k];
    }
    for (int64_t k = 0; k < count; ++k) w[k] /= total;
  }
  weight.assign(exact.begin(), exact.end());
}

Taps TapsTable::view() const {
  return {source, target, stride, begin.data(), end.data(), weight.data(), source == target};
}

// ------------------------------------------------------------------------------------ folded rows

namespace {

int64_t reflect(int64_t index, int64_t size) {
  if (index >= 0 && index < size) return index;
  const int64_t period = 2 * (size - 1);
  index = (index % period + period) % period;
  return index < size ? index : period - index;
}

// Weights of the sensor rows from `first` on.
struct SensorRowWeights {
  int64_t first;
  std::vector<double> values;

  double& at(int64_t row) { return values[row - first]; }
};

}  // namespace

FoldedTable::FoldedTable(const TapsTable& rows, Demosaic demosaic, int64_t top, int64_t height,
                         const Segments& others)
    : first(rows.target, height), last(rows.target, -1), begin(height + 1, 0) {
  const bool superpixel = demosaic == Demosaic::superpixel;
  const int64_t reach = demosaic == Demosaic::bilinear ? 1 : demosaic == Demosaic::malvar ? 2 : 0;
  struct Entry {
    int64_t row;
    FoldedTerm term;
  };
  std::vector<Entry> entries;
  SensorRowWeights direct[3][2];  // of T0, T1 and T2, for the even and the odd rows
  for (int64_t i = 0; i < rows.target; ++i) {
    if (i >= others.begin && i < others.end) continue;
    const int64_t from = rows.begin[i], to = rows.end[i];
    const int64_t low = std::max<int64_t>(superpixel ? top + 2 * from : top + from - reach, 0);
    const int64_t high = std::min(superpixel ? top + 2 * to : top + to + reach, height);
    for (auto& pair : direct) {
      for (auto& weights : pair) {
        weights.first = low;
        weights.values.assign(high - low, 0.0);
      }
    }
    for (int64_t k = from; k < to; ++k) {
      const double v = rows.exact[i * rows.stride + k - from];
      if (superpixel) {
        for (int p = 0; p < 2; ++p) direct[0][p].at(top + 2 * k + p) += v;
        continue;
      }
      const int64_t row = top + k;
      direct[0][row % 2].at(row) += v;
      for (int64_t away = 1; away <= reach; ++away) {
        direct[away][row % 2].at(reflect(row - away, height)) += v;
        direct[away][row % 2].at(reflect(row + away, height)) += v;
      }
    }
    first[i] = high;
    last[i] = low;
    for (int64_t row = low; row < high; ++row) {
      for (int32_t sum = 0; sum < 2 * (reach + 1); ++sum) {
        const int p = sum % 2;
        double weight = direct[sum / 2][p].at(row);
        if (sum / 2 == 1) weight -= 2 * direct[0][1 - p].at(row);
        if (sum / 2 == 2) weight -= 2 * direct[0][p].at(row);
        // Below this it is what rounding left of a zero.
        if (std::abs(weight) < 1e-12) continue;
        entries.push_back({row, {i, sum, static_cast<float>(weight)}});
        first[i] = std::min(first[i], row);
        last[i] = std::max(last[i], row);
      }
    }
  }
  // Output rows start and end in their order, also where they were mirrored at an edge.
  for (int64_t i = rows.target - 1; i > 0; --i) first[i - 1] = std::min(first[i - 1], first[i]);
  for (int64_t i = 1; i < rows.target; ++i) last[i] = std::max(last[i], last[i - 1]);
  for (int64_t i = 0, open = 0; i < rows.target; ++i) {
    while (open < i && last[open] < first[i]) ++open;
    active = std::max(active, i - open + 1);
  }
  // By sensor row, and in the order of the output rows for each.
  for (const Entry& entry : entries) ++begin[entry.row + 1];
  for (int64_t row = 0; row < height; ++row) begin[row + 1] += begin[row];
  terms.resize(entries.size());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (const Entry& entry : entries) terms[next[entry.row]++] = entry.term;
}

FoldedRows FoldedTable::view() const {
  return {first.data(), last.data(), begin.data(), terms.data(), active};
}

// --------------------------------------------------------------------------------------- segments

SegmentsTable::SegmentsTable(const TapsTable& rows, Demosaic demosaic, int64_t top, bool whole)
    : first(rows.target), beyond(rows.target), weight(rows.target) {
  // More rows than this, and the sums of 32-bit integers could overflow.
  constexpr int64_t kLongest = 256;
  const double scale = static_cast<double>(rows.source) / static_cast<double>(rows.target);
  length = static_cast<float>(scale);
  if (whole && rows.source >= 4 * rows.target && rows.source <= kLongest * rows.target) {
    // The first and the last triangle are cut at the edges of the crop.
    begin = 1;
    end = std::max<int64_t>(rows.target - 1, 1);
  }
  const int64_t start = demosaic == Demosaic::superpixel ? top / 2 : top;
  for (int64_t i = 0; i < rows.target; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    const int64_t row = static_cast<int64_t>(std::ceil(centre - 0.5));
    const double away = static_cast<double>(row) + 0.5 - centre;
    first[i] = start + row;
    beyond[i] = static_cast<float>(away);
    // A tap is (scale - distance) times the weight.
    weight[i] = static_cast<float>(rows.exact[i * rows.stride + row - rows.begin[i]] / (scale - away));
  }
}

Segments SegmentsTable::view() const {
  return {begin, end, first.data(), beyond.data(), weight.data(), length};
}

}  // namespace isp_distill
