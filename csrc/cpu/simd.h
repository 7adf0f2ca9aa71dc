// One vector type per instruction set, in the compilers' portable vector extensions, and the few
// functions of it that the kernels share.
//
// Included only by csrc/cpu/*_kernel.cpp (compiled once per instruction set, see setup.py). Everything
// is static and in the namespace of its instruction set, so that no two variants ever share code.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef ISP_DISTILL_ISA
#error "a kernel file is compiled with -DISP_DISTILL_ISA=generic, avx2 or avx512"
#endif

#define ISP_INLINE static inline __attribute__((always_inline))
#define ISP_MEMBER inline __attribute__((always_inline))

namespace isp_distill {
namespace ISP_DISTILL_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// Vector registers: what a kernel may hold in accumulators.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t Int __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint16_t HalfWord __attribute__((vector_size(2 * kLanes), may_alias));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t UnalignedWord __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));
typedef uint16_t UnalignedHalfWord __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));

#if defined(__AVX512F__)
// The masked forms of the intrinsics: GCC 12 warns about the undefined operand inside the plain ones.
constexpr __mmask16 kAll = 0xffff;
#endif

ISP_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
ISP_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
ISP_INLINE Word load_words(const void* p) { return *static_cast<const UnalignedWord*>(p); }
ISP_INLINE Vec broadcast(float x) { return x - Vec{}; }
ISP_INLINE Vec to_float(Word w) { return __builtin_convertvector((Int)w, Vec); }

// Where either is NaN, the second argument comes out, as with the processors' own instructions: with the
// bound first, min(high, max(low, x)) keeps the NaN of x.
#if defined(__AVX512F__)
ISP_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b); }
ISP_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
ISP_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
ISP_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
ISP_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
ISP_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
#endif

// x where a and b are equal or one of them is NaN, else zero.
ISP_INLINE Vec unless_different(Vec a, Vec b, Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_mov_ps(
      _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_UQ), (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_and_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_UQ), (__m256)x);
#else
  return (a < b) | (a > b) ? Vec{} : x;
#endif
}

ISP_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(kAll, (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (Vec)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

ISP_INLINE float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// c[0] + c[1] x + c[2] x^2 + ...; in pairs, pairs of terms do not wait for one another: half the steps, of
// one multiplication more. count is even there.
template <bool in_pairs = false, int count>
ISP_INLINE Vec polynomial(Vec x, const float (&c)[count]) {
  if constexpr (in_pairs) {
    const Vec square = x * x;
    Vec p = c[count - 1] * x + c[count - 2];
    for (int i = count - 4; i >= 0; i -= 2) p = p * square + (c[i + 1] * x + c[i]);
    return p;
  }
  Vec p = broadcast(c[count - 1]);
  for (int i = count - 2; i >= 0; --i) p = p * x + c[i];
  return p;
}

// 2^x and log2(x) of n vectors, in place, side by side: one after the other, each would wait for its own
// last step, and a processor that looks some sixty instructions ahead would wait with it. Not in pairs
// they are the same bits on every backend, see elementary.h.

// 2^x, x clamped to [-126, 127], NaN not kept; relative error below 3.2e-7. A polynomial of degree 5 on
// [-1/2, 1/2] (minimax error 8e-8, then 1.0 put for its constant) times a power of two made in the exponent's
// bits.
template <bool in_pairs, int n>
ISP_INLINE void exp2(Vec (&x)[n]) {
  constexpr float kTerms[] = {1.0f,            6.931472254e-01f, 2.402210737e-01f,
                              5.550297325e-02f, 9.676036365e-03f, 1.340999651e-03f};
  Vec t[n], shifted[n];
  for (int i = 0; i < n; ++i) {
    x[i] = min(max(x[i], broadcast(-126.0f)), broadcast(127.0f));
    // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits.
    shifted[i] = x[i] + 12582912.0f;
    t[i] = x[i] - (shifted[i] - 12582912.0f);
  }
  for (int i = 0; i < n; ++i) x[i] = polynomial<in_pairs>(t[i], kTerms);
  for (int i = 0; i < n; ++i) x[i] = (Vec)((Int)x[i] + ((Int)shifted[i] << 23));
}

// log2(x) for normal x > 0; absolute error below 1.1e-7 plus the rounding of the result (at most 1e-6
// for the smallest x that the curves see, 1e-8). A polynomial of degree 7 on [sqrt(1/2), sqrt(2)].
template <bool in_pairs, int n>
ISP_INLINE void log2(Vec (&x)[n]) {
  constexpr float kTerms[] = {1.442694772e+00f,  -7.213571495e-01f, 4.809394387e-01f,
                              -3.600871879e-01f, 2.867076072e-01f,  -2.500694984e-01f,
                              2.368893871e-01f,  -1.457418928e-01f};
  Int exponent[n];
  Vec t[n];
  for (int i = 0; i < n; ++i) {
    const Int bits = (Int)x[i];
    exponent[i] = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 is sqrt(1/2)
    t[i] = (Vec)(bits - (exponent[i] << 23)) - 1.0f;
  }
  for (int i = 0; i < n; ++i) x[i] = polynomial<in_pairs>(t[i], kTerms);
  for (int i = 0; i < n; ++i) x[i] = x[i] * t[i] + __builtin_convertvector(exponent[i], Vec);
}

ISP_INLINE Vec exp2(Vec x) {
  Vec one[1] = {x};
  exp2<false>(one);
  return one[0];
}

ISP_INLINE Vec log2(Vec x) {
  Vec one[1] = {x};
  log2<false>(one);
  return one[0];
}

ISP_INLINE Vec exp(Vec x) { return exp2(x * 1.44269504f); }

// The standard normal distribution function, erfc(-x / sqrt(2)) / 2; absolute error below 1e-7.
// erfc(z) = q(1 / (1 + 0.45 z)) exp(-z^2) for z >= 0, q of degree 7 (fitted, error 3e-9).
ISP_INLINE Vec normal_cdf(Vec x) {
  const Vec z = max(x, -x) * 0.707106781f;
  const Vec t = 1.0f / (1.0f + 0.45f * z);
  Vec q = broadcast(9.301315491e-02f);
  q = q * t - 4.962385186e-01f;
  q = q * t + 8.614207412e-01f;
  q = q * t - 3.802942982e-01f;
  q = q * t + 4.628213177e-01f;
  q = q * t + 2.001807377e-01f;
  q = q * t + 2.590968682e-01f;
  const Vec half_erfc = 0.5f * q * t * exp(-z * z);
  return x > 0.0f ? 1.0f - half_erfc : half_erfc;
}

// Rounds to nearest even; NaN stays NaN.
ISP_INLINE HalfWord to_bfloat16(Vec x) {
  const Word bits = (Word)x;
  const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Word quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : quiet, HalfWord);
}

ISP_INLINE Vec from_bfloat16(HalfWord h) { return (Vec)(__builtin_convertvector(h, Word) << 16); }

ISP_INLINE HalfWord to_float16(Vec x) {
#if defined(__AVX512F__)
  return (HalfWord)_mm512_maskz_cvtps_ph(kAll, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (HalfWord)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return (HalfWord)vcvt_f16_f32((float32x4_t)x);
#else
  const Word bits = (Word)x, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal numbers: move the exponent's bias and round the 13 lost bits to even.
  const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the spacing is 2^-24: adding 0.5 rounds there in hardware.
  const Word small = (Word)((Vec)magnitude + 0.5f) - 0x3f000000u;
  const Word huge = Word{} + 0x7c00u, nan = Word{} + 0x7e00u;
  Word half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? huge : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return __builtin_convertvector(half | sign, HalfWord);
#endif
}

ISP_INLINE Vec from_float16(HalfWord h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(kAll, (__m256i)h);
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
  return (Vec)vcvt_f32_f16((float16x4_t)h);
#else
  const Word bits = __builtin_convertvector(h, Word);
  const Word magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  // Times 2^112 moves the bias and normalises what was subnormal; infinity and NaN are put back.
  const Vec scaled = (Vec)magnitude * 0x1p112f;
  const Word special = magnitude | 0x7f800000u;
  return (Vec)((magnitude >= 0x0f800000u ? special : (Word)scaled) | sign);
#endif
}

ISP_INLINE HalfWord load_half(const void* p) { return *static_cast<const UnalignedHalfWord*>(p); }
ISP_INLINE void store_half(void* p, HalfWord v) { *static_cast<UnalignedHalfWord*>(p) = v; }

// The even and the odd elements of 2 * kLanes consecutive ones.
#if defined(__AVX512F__)
#define ISP_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ISP_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ISP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ISP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define ISP_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ISP_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define ISP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ISP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ISP_EVEN 0, 2, 4, 6
#define ISP_ODD 1, 3, 5, 7
#define ISP_LOW 0, 4, 1, 5
#define ISP_HIGH 2, 6, 3, 7
#endif
ISP_INLINE Vec even(Vec a, Vec b) { return __builtin_shufflevector(a, b, ISP_EVEN); }
ISP_INLINE Vec odd(Vec a, Vec b) { return __builtin_shufflevector(a, b, ISP_ODD); }
// a0 b0 a1 b1 ...: the first and the second half of the interleaved vectors.
ISP_INLINE Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, ISP_LOW); }
ISP_INLINE Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, ISP_HIGH); }

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
