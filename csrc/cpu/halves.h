// Integer arithmetic on two 16-bit values in each word of a vector.
#pragma once

#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

typedef uint16_t Halves __attribute__((vector_size(4 * kLanes), may_alias));

// a - b, at least 0.
ISP_INLINE Word subtract_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Word)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Word)_mm256_subs_epu16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Word)_mm_subs_epu16((__m128i)a, (__m128i)b);
#else
  const Halves x = (Halves)a, y = (Halves)b;
  return (Word)(x > y ? x - y : Halves{});
#endif
}

ISP_INLINE Word larger_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Word)_mm512_max_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Word)_mm256_max_epu16((__m256i)a, (__m256i)b);
#else
  return (Word)((Halves)subtract_halves(a, b) + (Halves)b);
#endif
}

ISP_INLINE Word smaller_halves(Word a, Word b) {
  return (Word)((Halves)a - (Halves)subtract_halves(a, b));
}

// Of signed values: the sum of the two products in each word.
ISP_INLINE Int multiply_halves(Word a, Word b) {
#if defined(__AVX512BW__)
  return (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Int)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Int)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const auto low = [](Word w) { return (Int)(w << 16) >> 16; };
  const auto high = [](Word w) { return (Int)w >> 16; };
  return low(a) * low(b) + high(a) * high(b);
#endif
}

ISP_INLINE bool any(Word w) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)w, (__m512i)w) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)w, (__m256i)w) == 0;
#else
  uint64_t parts[kLanes / 2], all = 0;
  memcpy(parts, &w, sizeof(w));
  for (uint64_t part : parts) all |= part;
  return all != 0;
#endif
}

ISP_INLINE Word both_halves(uint32_t even_column, uint32_t odd_column) {
  return (even_column | odd_column << 16) - Word{};
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
