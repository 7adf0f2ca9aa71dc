// The element types of the tensors that kernels read and write, and how a mosaic's codes are packed.
#pragma once

#include <stdint.h>

namespace isp_distill {

enum class Element { uint8, uint16, int16, int32, float16, bfloat16, float32, float64 };

// In the order of isp_distill/raw/packings.py, PACKED.
enum class Packing { none, mipi10, mipi12, mipi14, pfnc10p, pfnc12p, gige12packed };

// The linear values of a companding sensor's codes: sample n's from tables + n * step on, of the codes 0 to
// `last`, beyond which the last one's value holds. Null where codes are linear.
struct Companding {
  const float* tables;
  int64_t step, last;
};

}  // namespace isp_distill
