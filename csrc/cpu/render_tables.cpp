// The tables of the render operator.
#include "cpu/render_tables.h"

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

// Each parabola meets the curve at the three Chebyshev nodes of its segment. The largest error on [0, 1]
// is 2.1e-5 for sRGB (a twelfth of a 12-bit step), 4.2e-6 for gamma and 5.1e-6 for smoothstep;
// tests/test_render_kernels.py measures it.
std::vector<float> tone_table(Tone tone) {
  std::vector<float> table(3 * kSegments, 0.0f);
  if (tone == Tone::linear) return table;
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
  weight.resize(static_cast<size_t>(target * stride), 0.0f);
  std::vector<double> exact(static_cast<size_t>(most));
  for (int64_t i = 0; i < target; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    double total = 0;
    for (int64_t k = begin[i]; k < end[i]; ++k) {
      const double distance = std::abs((static_cast<double>(k) + 0.5 - centre) / support);
      exact[k - begin[i]] = std::max(1.0 - distance, 0.0);
      total += exact[k - begin[i]];
    }
    for (int64_t k = 0; k < end[i] - begin[i]; ++k) {
      weight[i * stride + k] = static_cast<float>(exact[k] / total);
    }
  }
}

Taps TapsTable::view() const {
  return {source, target, stride, begin.data(), end.data(), weight.data(), source == target};
}

}  // namespace isp_distill
