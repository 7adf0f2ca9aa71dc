// What the operators unprocess and expose (call.cpp) hand to their kernels: plain data, checked
// already.
#pragma once

#include <stdint.h>

#include "cpu/element.h"

namespace isp_distill {

// The sensor that the mosaics are written for.
struct Sensor {
  int64_t height, width;              // even
  const int64_t* pattern;             // [N]
  const float *black, *white, *scale;  // [N, 4], [N], [N, 4]: scale = white - black
  const float *shot, *read;           // [N] both, or null where there is no noise
  uint64_t seed;
  uint16_t* out;  // [N, height, width], contiguous
};

struct Unprocess {
  Sensor sensor;
  const void* rgb;  // [N, 3, height, width]
  Element type;     // uint8, float16, bfloat16 or float32
  int64_t sample, channel, row, column;  // strides of rgb in elements
  const float* rgb_to_camera;            // [N, 3, 3]
  const float* gains;                    // [N, 3]
};

struct Expose {
  Sensor sensor;
  const void* mosaic;  // [N, height, width]
  Element type;
  int64_t sample, row, column;  // strides in elements
  const float* factor;          // [N]
};

// Rows of periods of one sample.
struct PeriodRows {
  int64_t sample, begin, end;
};

// A tile is two rows of so many columns: the six rows of light that unprocess makes of it, and the two
// of sensor values, stay in the first-level cache.
constexpr int64_t kTileColumns = 768;

}  // namespace isp_distill
