// How kernels read part of a row of any element type and any stride: as contiguous floats.
#pragma once

#include "cpu/element.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

template <class T>
ISP_INLINE void widen_columns(const void* row, int64_t begin, int64_t stride, int64_t count, float* out) {
  const T* p = static_cast<const T*>(row) + begin * stride;
  if (stride == 1) {  // the compiler makes vectors of this one
    for (int64_t i = 0; i < count; ++i) out[i] = (float)p[i];
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = (float)p[i * stride];
  }
}

template <Vec (*widen)(HalfWord)>
ISP_INLINE void widen_halves(const void* row, int64_t begin, int64_t stride, int64_t count, float* out) {
  const uint16_t* p = static_cast<const uint16_t*>(row) + begin * stride;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = count - i < kLanes ? count - i : kLanes;
    uint16_t halves[kLanes] = {};
    for (int64_t j = 0; j < lanes; ++j) halves[j] = p[(i + j) * stride];
    const Vec v = widen(load_half(halves));
    memcpy(out + i, &v, 4 * lanes);
  }
}

// Columns begin to begin + count of a row, `stride` elements apart. `row` points to its column 0.
static void read_columns(
    const void* row, Element type, int64_t begin, int64_t stride, int64_t count, float* out) {
  switch (type) {
    case Element::uint8:
      return widen_columns<uint8_t>(row, begin, stride, count, out);
    case Element::uint16:
      return widen_columns<uint16_t>(row, begin, stride, count, out);
    case Element::int16:
      return widen_columns<int16_t>(row, begin, stride, count, out);
    case Element::int32:
      return widen_columns<int32_t>(row, begin, stride, count, out);
    case Element::float32:
      return widen_columns<float>(row, begin, stride, count, out);
    case Element::float64:
      return widen_columns<double>(row, begin, stride, count, out);
    case Element::float16:
      return widen_halves<from_float16>(row, begin, stride, count, out);
    case Element::bfloat16:
      return widen_halves<from_bfloat16>(row, begin, stride, count, out);
  }
}

static inline int64_t size_of(Element type) {
  switch (type) {
    case Element::uint8:
      return 1;
    case Element::int32:
    case Element::float32:
      return 4;
    case Element::float64:
      return 8;
    default:
      return 2;
  }
}

// Tiles of `tile` columns, their last vector filled up: a loop over vectors may run to the end of it.
ISP_INLINE int64_t whole_vectors(int64_t columns) {
  return (columns + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
