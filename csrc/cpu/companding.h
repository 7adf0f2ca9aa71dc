// Companded codes to linear values, where a row is read: one look-up each.
//
// Predicted: two loads and a store for each pixel. A processor's gather instruction is no faster than its
// loads, so there are no vectors here.
#pragma once

#include "cpu/mosaic.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

template <class Code>
ISP_INLINE void linearise_codes(
    const Code* codes, int64_t count, const float* table, int64_t last, float* out) {
  const int64_t end = last;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = table[at_most(at_least(codes[i], 0), end)];
  }
}

// `count` elements of a mosaic from element `begin` on.
static void linearise_elements(
    const void* mosaic, Element type, int64_t begin, int64_t count, const float* table, int64_t last,
    float* out) {
  switch (type) {
    case Element::uint8:
      return linearise_codes(static_cast<const uint8_t*>(mosaic) + begin, count, table, last, out);
    case Element::int16:
      return linearise_codes(static_cast<const int16_t*>(mosaic) + begin, count, table, last, out);
    case Element::int32:
      return linearise_codes(static_cast<const int32_t*>(mosaic) + begin, count, table, last, out);
    default:
      return linearise_codes(static_cast<const uint16_t*>(mosaic) + begin, count, table, last, out);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
