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
#if defined(__AVX512BW__)
  return (Word)_mm512_min_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Word)_mm256_min_epu16((__m256i)a, (__m256i)b);
#else
  return (Word)((Halves)a - (Halves)subtract_halves(a, b));
#endif
}

// total + addend where a > b.
ISP_INLINE Word add_where_larger(Word total, Word a, Word b, Word addend) {
#if defined(__AVX512BW__)
  const __mmask32 larger = _mm512_cmpgt_epu16_mask((__m512i)a, (__m512i)b);
  return (Word)_mm512_mask_add_epi16((__m512i)total, larger, (__m512i)total, (__m512i)addend);
#else
  const Halves larger = (Halves)((Halves)a > (Halves)b);
  return (Word)((Halves)total + (larger & (Halves)addend));
#endif
}

// Values of two rows side by side: each word is one column's value of y and of z. The columns are not in
// order; even_columns and odd_columns of the two vectors that come of `low` and `high` put them in order.
#if defined(__AVX512F__)
ISP_INLINE Word rows_low(Word y, Word z) {
  return (Word)_mm512_unpacklo_epi16((__m512i)y, (__m512i)z);
}
ISP_INLINE Word rows_high(Word y, Word z) {
  return (Word)_mm512_unpackhi_epi16((__m512i)y, (__m512i)z);
}
ISP_INLINE Vec even_columns(Vec low, Vec high) {
  return (Vec)_mm512_shuffle_ps((__m512)low, (__m512)high, 0x88);
}
ISP_INLINE Vec odd_columns(Vec low, Vec high) {
  return (Vec)_mm512_shuffle_ps((__m512)low, (__m512)high, 0xdd);
}
#elif defined(__AVX2__)
ISP_INLINE Word rows_low(Word y, Word z) {
  return (Word)_mm256_unpacklo_epi16((__m256i)y, (__m256i)z);
}
ISP_INLINE Word rows_high(Word y, Word z) {
  return (Word)_mm256_unpackhi_epi16((__m256i)y, (__m256i)z);
}
ISP_INLINE Vec even_columns(Vec low, Vec high) {
  return (Vec)_mm256_shuffle_ps((__m256)low, (__m256)high, 0x88);
}
ISP_INLINE Vec odd_columns(Vec low, Vec high) {
  return (Vec)_mm256_shuffle_ps((__m256)low, (__m256)high, 0xdd);
}
#else
// Of 4 words: the first and the second half.
ISP_INLINE Word rows_low(Word y, Word z) {
  return (Word)__builtin_shufflevector((Halves)y, (Halves)z, 0, 8, 1, 9, 2, 10, 3, 11);
}
ISP_INLINE Word rows_high(Word y, Word z) {
  return (Word)__builtin_shufflevector((Halves)y, (Halves)z, 4, 12, 5, 13, 6, 14, 7, 15);
}
ISP_INLINE Vec even_columns(Vec low, Vec high) { return even(low, high); }
ISP_INLINE Vec odd_columns(Vec low, Vec high) { return odd(low, high); }
#endif

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
