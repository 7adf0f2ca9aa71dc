// Vectors of float for the distillation kernels: loads and stores of three dtypes, exp2 and log2.
//
// Written with the vector extension of GCC and Clang, so that one source serves every instruction
// set; intrinsics only where the extension has no word for the instruction. Included by *_kernel.cpp
// alone: everything lives in the namespace of the instruction set (see setup.py).
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/distill_loss/call.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));

#define INLINE static inline __attribute__((always_inline))
// The masked forms of AVX-512 with a full mask are the plain ones; GCC 12 warns of those by mistake.

INLINE V splat(float x) { return V{} + x; }
INLINE I splat_int(int32_t x) { return I{} + x; }
INLINE I iota() {
  I x;
  for (int i = 0; i < W; ++i) x[i] = i;
  return x;
}

INLINE V load(const float* p) {
  V x;
  memcpy(&x, p, sizeof x);
  return x;
}
INLINE void store(float* p, V x) { memcpy(p, &x, sizeof x); }
INLINE I load_int(const int32_t* p) {
  I x;
  memcpy(&x, p, sizeof x);
  return x;
}
INLINE void store_int(int32_t* p, I x) { memcpy(p, &x, sizeof x); }
INLINE H load_half_words(const uint16_t* p) {
  H x;
  memcpy(&x, p, sizeof x);
  return x;
}

// Where one of the two is NaN this is b: what may be NaN, and is to stay so, comes second.
INLINE V max(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// ---------------------------------------------------------------- dtypes

INLINE V from_bfloat16(H bits) { return (V)(__builtin_convertvector(bits, U) << 16); }

// Round to nearest even; a NaN stays one.
INLINE H to_bfloat16(V x) {
  U bits = (U)x;
  U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = (x != x) ? (U{} + 0x7fc0u) : rounded;
  return __builtin_convertvector(rounded, H);
}

INLINE V from_float16(H bits) {
#if defined(__AVX512F__)
  return (V)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif defined(__AVX2__)
  return (V)_mm256_cvtph_ps((__m128i)bits);
#else
  // Exponent and mantissa moved into place, then scaled by 2^112, which also makes subnormals right.
  U wide = __builtin_convertvector(bits, U);
  V magnitude = (V)((wide & 0x7fffu) << 13) * 0x1p112f;
  magnitude = (wide & 0x7c00u) == 0x7c00u ? (V)((wide & 0x7fffu) << 13 | 0x7f800000u) : magnitude;
  return (V)((U)magnitude | (wide & 0x8000u) << 16);
#endif
}

INLINE H to_float16(V x) {
#if defined(__AVX512F__)
  return (H)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (H)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  U sign = (U)x & 0x80000000u, bits = (U)x & 0x7fffffffu;
  // Normal numbers: add half a unit (ties to even) and drop 13 bits. Subnormal ones: let the addition
  // of 0.5 do the rounding, since 0.5 has the unit of float16's smallest number.
  U normal = (bits + 0xfffu + ((bits >> 13) & 1u) - (112u << 23)) >> 13;
  U small = (U)((V)bits + 0.5f) - 0x3f000000u;
  U half = bits < 0x38800000u ? small : normal;
  half = bits >= 0x477ff000u ? (U{} + 0x7c00u) : half;
  half = bits > 0x7f800000u ? (U{} + 0x7e00u) : half;
  return __builtin_convertvector(half | sign >> 16, H);
#endif
}

template <Dtype D>
constexpr int size_of = D == Dtype::float32 ? 4 : 2;

template <Dtype D>
INLINE V load_as(const char* p) {
  if constexpr (D == Dtype::float32) return load((const float*)p);
  if constexpr (D == Dtype::bfloat16) return from_bfloat16(load_half_words((const uint16_t*)p));
  if constexpr (D == Dtype::float16) return from_float16(load_half_words((const uint16_t*)p));
}

template <Dtype D>
INLINE void store_as(char* p, V x) {
  if constexpr (D == Dtype::float32) {
    store((float*)p, x);
  } else {
    H bits = D == Dtype::bfloat16 ? to_bfloat16(x) : to_float16(x);
    memcpy(p, &bits, sizeof bits);
  }
}

// The first of `count` elements that lie `stride` elements apart, the lanes beyond the last one 0; and back.
template <Dtype D>
INLINE V load_lanes(const char* from, int64_t stride, int64_t count) {
  constexpr int size = size_of<D>;
  if (stride == 1 && count >= W) return load_as<D>(from);
  char elements[W * size] = {};
  const int64_t here = count < W ? count : W;
  for (int64_t i = 0; i < here; ++i) memcpy(elements + i * size, from + i * stride * size, size);
  return load_as<D>(elements);
}

template <Dtype D>
INLINE void store_lanes(char* to, int64_t stride, int64_t count, V x) {
  constexpr int size = size_of<D>;
  if (stride == 1 && count >= W) return store_as<D>(to, x);
  char elements[W * size];
  store_as<D>(elements, x);
  const int64_t here = count < W ? count : W;
  for (int64_t i = 0; i < here; ++i) memcpy(to + i * stride * size, elements + i * size, size);
}

// Past the caches: what is written is not read again soon, and the line need not be fetched first.
INLINE void stream(float* p, V x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)x);
#else
  store(p, x);
#endif
}

INLINE void end_of_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Calls a template with the dtype that only the call knows.
template <class Function>
INLINE void with_dtype(Dtype dtype, Function&& function) {
  switch (dtype) {
    case Dtype::float32:
      return function.template operator()<Dtype::float32>();
    case Dtype::bfloat16:
      return function.template operator()<Dtype::bfloat16>();
    case Dtype::float16:
      return function.template operator()<Dtype::float16>();
  }
}

// ---------------------------------------------------------------- functions

// 2^x for x <= 0 (any x <= 127 works), to 3 units in the last place; between 0 and 2^-126 below that, 0
// below 2^-127, also for -inf; NaN for NaN.
// A polynomial, minimax in the relative error: of degree 6 on [0, 1) (1.3e-8 in exact arithmetic) where an
// instruction scales by the floor of its operand (and knows -inf), elsewhere of degree 5 on [-1/2, 1/2]
// (1.1e-7). One degree is a twentieth of what the exponentials of a loss take.
INLINE V exp2_of(V x) {
#if defined(__AVX512DQ__)
  V f = (V)_mm512_maskz_reduce_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  V p = splat(0.00021612913405988365f);
  p = p * f + 0.0012467846972867846f;
  p = p * f + 0.009675451554358006f;
  p = p * f + 0.055485282093286514f;
  p = p * f + 0.2402293086051941f;
  p = p * f + 0.6931470632553101f;
  p = p * f + 1.0f;
  return (V)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)x);
#else
  // At -127 the polynomial is 1 exactly, and its exponent is taken away: the bits of 0.
  x = max(splat(-127.0f), x);
#if defined(__AVX2__)
  V n = (V)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  V n = (x + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits
#endif
  V f = x - n;
  V p = splat(0.001326472731307149f);
  p = p * f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  return (V)((I)p + (__builtin_convertvector(n, I) << 23));
#endif
}

// log2 of a positive, normal, finite x; -inf for 0, NaN for NaN.
// x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log2(1 + f) = f P(f), P of degree 8.
INLINE V log2_of(V x) {
  U bits = (U)x - 0x3f3504f3u;
  V n = __builtin_convertvector((I)bits >> 23, V);
  V f = (V)((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  V p = splat(0.12583689391613007f);
  p = p * f + -0.20726968348026276f;
  p = p * f + 0.21571561694145203f;
  p = p * f + -0.23894482851028442f;
  p = p * f + 0.28791624307632446f;
  p = p * f + -0.3607036769390106f;
  p = p * f + 0.48091062903404236f;
  p = p * f + -0.7213473320007324f;
  p = p * f + 1.4426950216293335f;
  V y = p * f + n;
  return x > 0 ? y : x - __builtin_inff();
}

INLINE V absolute(V x) { return (V)((U)x & 0x7fffffffu); }

// All lanes hold the sum, the maximum, the minimum of all lanes; a fixed order, so deterministic.
template <class Vector>
INLINE Vector lanes_swapped(Vector x, int distance) {
#if defined(__clang__)
  Vector y;
  for (int i = 0; i < W; ++i) y[i] = x[i ^ distance];
  return y;
#else
  return __builtin_shuffle(x, iota() ^ distance);
#endif
}

// Lane j of vector i becomes lane i of vector j: in squares of 2, 4, ... lanes, the two off the diagonal
// change places.
INLINE void transpose(V (&square)[W]) {
  const auto pick = [](V a, V b, I from) __attribute__((always_inline)) {
#if defined(__clang__)
    V y;
    for (int i = 0; i < W; ++i) y[i] = from[i] < W ? a[from[i]] : b[from[i] - W];
    return y;
#else
    return __builtin_shuffle(a, b, from);
#endif
  };
#pragma GCC unroll 4
  for (int half = 1; half < W; half *= 2) {
    const I lane = iota(), second = (lane & half) != 0;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (i & half) continue;
      const V a = square[i], b = square[i + half];
      square[i] = pick(a, b, second ? lane + (W - half) : lane);
      square[i + half] = pick(a, b, second ? lane + W : lane + half);
    }
  }
}

INLINE V sum_across(V x) {
#pragma GCC unroll 4
  for (int distance = W / 2; distance > 0; distance /= 2) x += lanes_swapped(x, distance);
  return x;
}
INLINE V max_across(V x) {
#pragma GCC unroll 4
  for (int distance = W / 2; distance > 0; distance /= 2) x = max(x, lanes_swapped(x, distance));
  return x;
}
INLINE I min_across(I x) {
#pragma GCC unroll 4
  for (int distance = W / 2; distance > 0; distance /= 2) {
    I y = lanes_swapped(x, distance);
    x = x < y ? x : y;
  }
  return x;
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
