// Tone curves that are a power of x, without tables in memory: what AVX2, NEON and the plain variant use.
//
// x = m 2^e with m in [1, 2), so x^p = m^p (2^e)^p: a polynomial of m, and a factor for each octave,
// looked up among eight in one register. The parabolas of colour.h take three look-ups, and a gather
// costs as much as eight loads: they were four fifths of the time of a picture resized in display
// values. The polynomials are minimax, bound to P(2) = 2^p P(1), so that octaves meet.
//
// Of two degrees less the error of sRGB would be 9e-4, and a picture 6% faster.
#pragma once

#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// Element index[k] & 7 of eight, for each lane k.
ISP_INLINE Vec one_of_eight(const float (&values)[8], Int index) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Not the intrinsic: from memory the instruction takes twice as long, and compilers put it there.
  const Vec table = load(values);
  Vec x;
  asm("vpermps %2, %1, %0" : "=x"(x) : "x"(index), "x"(table));
  return x;
#elif defined(__aarch64__)
  // The four bytes of each element.
  const Int bytes = (index & 7) * 0x04040404 + 0x03020100;
  const uint8x16x2_t table = {(uint8x16_t)load(values), (uint8x16_t)load(values + 4)};
  return (Vec)vqtbl2q_u8(table, (uint8x16_t)bytes);
#else
  Vec x;
  for (int k = 0; k < kLanes; ++k) x[k] = values[index[k] & 7];
  return x;
#endif
}

ISP_INLINE Int biased_exponent(Vec x) { return (Int)x >> 23; }

// A constant for what comes next, in a register. A loop over pixels has more constants than registers,
// and where each operation reads its own from memory, loads are what takes the time: three channels
// take each one together. `beside` is any of them, without which a compiler would undo this.
ISP_INLINE Vec at_hand(float constant, [[maybe_unused]] Vec beside) {
  Vec x = broadcast(constant);
#if defined(__x86_64__)
  asm("" : "+x"(x) : "x"(beside));
#endif
  return x;
}

ISP_INLINE void mantissas(const Vec* x, Vec* m) {
  const Int mask = (Int)at_hand(__builtin_bit_cast(float, 0x007fffff), x[0]);
  const Int one = (Int)at_hand(1.0f, x[0]);
  for (int c = 0; c < 3; ++c) m[c] = (Vec)(((Int)x[c] & mask) | one);
}

// The polynomial, its highest coefficient first, of three values.
template <int count>
ISP_INLINE void polynomials(const float (&coefficients)[count], const Vec* m, Vec* y) {
  const Vec highest = at_hand(coefficients[0], m[0]);
  for (int c = 0; c < 3; ++c) y[c] = highest;
#pragma GCC unroll 8
  for (int k = 1; k < count; ++k) {
    const Vec next = at_hand(coefficients[k], m[0]);
    for (int c = 0; c < 3; ++c) y[c] = y[c] * m[c] + next;
  }
}

// What the colours are multiplied by in front of srgb_of: the end of the curve's straight part,
// 0.0031308, is 2^-8 there, and white this.
constexpr float kSrgbWhite = 1.2476842f;

// sRGB of three x / kSrgbWhite, x in [0, kSrgbWhite]; absolute error below 1.4e-5, a ninth of
// half a 12-bit step. NaN stays NaN.
ISP_INLINE void srgb_of(const Vec* x, Vec* y) {
  // m^(1 / 2.4)
  constexpr float kPower[] = {-0.0108815636f, 0.0895253941f, -0.319764465f, 0.830678999f,
                              0.410441667f};
  // 1.055 (2^e / kSrgbWhite)^(1 / 2.4), e from -8 to -1, in the order of the exponent's low bits.
  constexpr float kFactors[8] = {0.127410337f, 0.170072407f, 0.227019429f, 0.303034574f,
                                 0.40450263f,  0.539946198f, 0.720741749f, 0.0954499096f};
  constexpr float kBrightest = 0.962074816f;  // of e = 0, whose low bits are those of -8
  Vec m[3];
  mantissas(x, m);
  polynomials(kPower, m, y);
  const Vec one = at_hand(1.0f, y[0]), brightest = at_hand(kBrightest, y[0]);
  const Vec lower = at_hand(-0.055f, y[0]), slope = at_hand(10.3551846f, y[0]);
  for (int c = 0; c < 3; ++c) {
    // A blend of two, but for where blends are on the multiply-adds' ports.
    const Vec factor = max(one_of_eight(kFactors, biased_exponent(x[c])),
                           (Vec)((x[c] >= one) & (Int)brightest));
    // Below 2^-8 the factor is that of a brighter octave, and the straight part is the lower one.
    y[c] = min(factor * y[c] + lower, slope * x[c]);
  }
}

// x^(1 / 2.2) of three x in [2^-31, 1], below which it is wrong; relative error below 1.5e-6. NaN stays
// NaN.
ISP_INLINE void gamma_of(const Vec* x, Vec* y) {
  // m^(1 / 2.2)
  constexpr float kPower[] = {0.00529033458f, -0.0502789468f, 0.205274433f,
                              -0.489673018f,  0.992633224f,   0.336754978f};
  // (2^e)^(1 / 2.2), of the three low bits of the biased exponent and of the others.
  constexpr float kLow[8] = {1.0f,        1.37035096f, 1.87786186f, 2.57332969f,
                             3.52636504f, 4.83235788f, 6.62202644f, 9.07450008f};
  constexpr float kHigh[8] = {2.39660003e-09f, 2.98023224e-08f, 3.70599338e-07f, 4.6084956e-06f,
                              5.73077959e-05f, 7.12636742e-04f, 8.86181649e-03f, 1.10198908e-01f};
  Vec m[3];
  mantissas(x, m);
  polynomials(kPower, m, y);
  for (int c = 0; c < 3; ++c) {
    const Int exponent = biased_exponent(x[c]);
    y[c] *= one_of_eight(kLow, exponent) * one_of_eight(kHigh, exponent >> 3);
    y[c] = x[c] == x[c] ? y[c] : x[c];
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
