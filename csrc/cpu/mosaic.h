// How kernels read a row of a mosaic: vectors of its even and odd columns, as floats.
#pragma once

#include "cpu/element.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

ISP_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
ISP_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
ISP_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
// Division that rounds down, for a negative n as well.
ISP_INLINE int64_t floor_div(int64_t n, int64_t d) { return n >= 0 ? n / d : -((-n + d - 1) / d); }

// Two neighbours of 16 bits, which one word holds.
template <Element type>
ISP_INLINE void split_pair(Word both, Vec* even_column, Vec* odd_column) {
  if constexpr (type == Element::uint16) {
    *even_column = to_float(both & 0xffffu);
    *odd_column = to_float(both >> 16);
  } else {
    *even_column = to_float((Word)((Int)(both << 16) >> 16));
    *odd_column = to_float((Word)((Int)both >> 16));
  }
}

// The even and the odd columns of kLanes pairs, from pair `pair` of a row on.
template <Element type>
ISP_INLINE void load_pairs(const void* row, int64_t pair, Vec* even_columns, Vec* odd_columns) {
  if constexpr (type == Element::float32) {
    const float* p = static_cast<const float*>(row) + 2 * pair;
    const Vec a = load(p), b = load(p + kLanes);
    *even_columns = even(a, b);
    *odd_columns = odd(a, b);
  } else {
    split_pair<type>(
        load_words(static_cast<const uint16_t*>(row) + 2 * pair), even_columns, odd_columns);
  }
}

// The types without a path of their own are widened to float32 first.
static void widen(const void* source, Element type, int64_t begin, int64_t count, float* out) {
  switch (type) {
    case Element::uint8:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<const uint8_t*>(source)[begin + i];
      return;
    case Element::int32:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = (float)static_cast<const int32_t*>(source)[begin + i];
      }
      return;
    case Element::float64:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = (float)static_cast<const double*>(source)[begin + i];
      }
      return;
    default: {  // float16
      const uint16_t* half = static_cast<const uint16_t*>(source) + begin;
      for (int64_t i = 0; i < count; i += kLanes) {
        HalfWord h = {};
        memcpy(&h, half + i, 2 * at_most(kLanes, count - i));
        const Vec v = from_float16(h);
        memcpy(out + i, &v, 4 * at_most(kLanes, count - i));
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
