// Integer arithmetic on two 16-bit values in each word of a vector.
#pragma once

#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

typedef uint16_t Halves __attribute__((vector_size(4 * kLanes), may_alias));

// x86's instruction of the vectors' width.
#if defined(__AVX512BW__)
typedef __m512i Integers;
typedef __m512 Floats;
#define ISP_OF_WIDTH(name) _mm512_##name
#elif defined(__AVX2__)
typedef __m256i Integers;
typedef __m256 Floats;
#define ISP_OF_WIDTH(name) _mm256_##name
#elif defined(__x86_64__)
typedef __m128i Integers;
typedef __m128 Floats;
#define ISP_OF_WIDTH(name) _mm_##name
#endif

// a - b, at least 0.
ISP_INLINE Word subtract_halves(Word a, Word b) {
#if defined(ISP_OF_WIDTH)
  return (Word)ISP_OF_WIDTH(subs_epu16)((Integers)a, (Integers)b);
#elif defined(__aarch64__)
  return (Word)vqsubq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  const Halves x = (Halves)a, y = (Halves)b;
  return (Word)(x > y ? x - y : Halves{});
#endif
}

// SSE2 alone has no maximum and minimum of these.
ISP_INLINE Word larger_halves(Word a, Word b) {
#if defined(__AVX2__)
  return (Word)ISP_OF_WIDTH(max_epu16)((Integers)a, (Integers)b);
#elif defined(__aarch64__)
  return (Word)vmaxq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  return (Word)((Halves)subtract_halves(a, b) + (Halves)b);
#endif
}

ISP_INLINE Word smaller_halves(Word a, Word b) {
#if defined(__AVX2__)
  return (Word)ISP_OF_WIDTH(min_epu16)((Integers)a, (Integers)b);
#elif defined(__aarch64__)
  return (Word)vminq_u16((uint16x8_t)a, (uint16x8_t)b);
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
#if defined(ISP_OF_WIDTH)
ISP_INLINE Word rows_low(Word y, Word z) {
  return (Word)ISP_OF_WIDTH(unpacklo_epi16)((Integers)y, (Integers)z);
}
ISP_INLINE Word rows_high(Word y, Word z) {
  return (Word)ISP_OF_WIDTH(unpackhi_epi16)((Integers)y, (Integers)z);
}
ISP_INLINE Vec even_columns(Vec low, Vec high) {
  return (Vec)ISP_OF_WIDTH(shuffle_ps)((Floats)low, (Floats)high, 0x88);
}
ISP_INLINE Vec odd_columns(Vec low, Vec high) {
  return (Vec)ISP_OF_WIDTH(shuffle_ps)((Floats)low, (Floats)high, 0xdd);
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
#if defined(ISP_OF_WIDTH)
  return (Int)ISP_OF_WIDTH(madd_epi16)((Integers)a, (Integers)b);
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
