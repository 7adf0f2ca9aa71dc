// What the sensor does with light: adds noise to it, and quantises it. The last step of unprocess and
// of expose, on 2 * kLanes columns of the two rows of a row of periods.
//
// Colours alternate along a row. Their settings lie in vectors that alternate likewise, so that a row is
// worked on as it lies in memory.
#pragma once

#include "cpu/philox.h"
#include "cpu/unprocess/call.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

ISP_INLINE Vec alternating(float even_columns, float odd_columns) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = i % 2 ? odd_columns : even_columns;
  return v;
}

// The four planes' values (R, Gr, Gb, B) as they lie along a row of a period.
ISP_INLINE Vec along_row(const float* planes, int64_t pattern, int row) {
  return alternating(planes[pattern ^ (2 * row)], planes[pattern ^ (2 * row + 1)]);
}

// One sample's sensor.
struct SensorOfSample {
  Vec black[2], scale[2];  // of both rows
  Vec white, shot, read;
  uint64_t seed;
  uint32_t sample;

  SensorOfSample(const Sensor& s, int64_t n)
      : white(broadcast(s.white[n])), shot{}, read{}, seed(s.seed), sample((uint32_t)n) {
    for (int row = 0; row < 2; ++row) {
      black[row] = along_row(s.black + 4 * n, s.pattern[n] & 3, row);
      scale[row] = along_row(s.scale + 4 * n, s.pattern[n] & 3, row);
    }
    if (!s.shot) return;
    shot = broadcast(s.shot[n]);
    read = broadcast(s.read[n]);
  }
};

ISP_INLINE HalfWord quantise(Vec x, Vec scale, Vec black, Vec white) {
  Vec v = x * scale + black;
  v = min(max(v, Vec{}), broadcast(65535.0f));  // NaN becomes 0
  // Adding 1.5 * 2^23 rounds to an integer, halves to even.
  v = min((v + 12582912.0f) - 12582912.0f, white);
  return __builtin_convertvector((Word)__builtin_convertvector(v, Int), HalfWord);
}

// x[row][half]: light, 0 at black and 1 at white; kLanes columns each. `period` is the number of the
// first of the kLanes periods.
template <bool noisy>
ISP_INLINE void expose_sensor(
    const SensorOfSample& s, Vec (&x)[2][2], int64_t period, uint16_t* top, uint16_t* bottom) {
  if constexpr (noisy) {
    Word number;
    for (int i = 0; i < kLanes; ++i) number[i] = i;
    Word words[4];
    philox((uint32_t)period + number, s.sample, s.seed, words);
    for (int row = 0; row < 2; ++row) {
      Vec first, second;
      normal_pair(words[2 * row], words[2 * row + 1], &first, &second);
      const Vec normal[2] = {interleave_low(first, second), interleave_high(first, second)};
      for (int half = 0; half < 2; ++half) {
        const Vec variance = s.shot * max(x[row][half], Vec{}) + s.read;
        x[row][half] = x[row][half] + normal[half] * square_root(variance);
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    const int at = half * kLanes;
    store_half(top + at, quantise(x[0][half], s.scale[0], s.black[0], s.white));
    store_half(bottom + at, quantise(x[1][half], s.scale[1], s.black[1], s.white));
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
