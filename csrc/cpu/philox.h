// Philox4x32-10 and the standard normal numbers made of it, kLanes counters at a time: the stream of
// isp_distill/ops/philox.py.
#pragma once

#include "cpu/elementary.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

typedef uint64_t Wide __attribute__((vector_size(4 * kLanes), may_alias));

// The products of the even elements, which lie in the lower halves of 64 bits.
ISP_INLINE Wide multiply_even(Wide a, uint32_t factor) {
  const Wide b = Wide{} + factor;
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xffffffffu) * b;
#endif
}

// Both halves of the 64-bit products.
ISP_INLINE void multiply(Word a, uint32_t factor, Word* high, Word* low) {
  const Wide even = multiply_even((Wide)a, factor), odd = multiply_even((Wide)a >> 32, factor);
  const Wide upper = Wide{} + 0xffffffff00000000u;
  *high = (Word)((even >> 32) | (odd & upper));
  *low = (Word)((even & ~upper) | (odd << 32));
}

// The four words of each period's counter.
ISP_INLINE void philox(Word period, uint32_t sample, uint64_t seed, Word (&words)[4]) {
  constexpr uint32_t kStreamNoise = 1;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  Word c0 = period, c1 = Word{} + sample, c2 = Word{} + kStreamNoise, c3 = {};
  for (int round = 0; round < 10; ++round) {
    Word h0, l0, h1, l1;
    multiply(c0, 0xD2511F53u, &h0, &l0);
    multiply(c2, 0xCD9E8D57u, &h1, &l1);
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// Two standard normal numbers of two words (Box and Muller, 1958).
ISP_INLINE void normal_pair(Word a, Word b, Vec* first, Vec* second) {
  const Vec u = 1.0f - to_float(a >> 8) * 0x1p-24f;
  const Vec radius = square_root(log2(u) * -1.386294361f);
  Vec sine, cosine;
  sine_cosine((Int)(b >> 8), &sine, &cosine);
  *first = radius * cosine;
  *second = radius * sine;
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
