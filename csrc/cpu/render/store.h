// Vectors of floats to elements of the picture, through the caches or around them.
#pragma once

#include "cpu/render/call.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

ISP_INLINE char* address(const Render& r, int64_t sample, int64_t row, int64_t column, int channel) {
  const int64_t size = r.out_type == Element::float32 ? 4 : 2;
  return static_cast<char*>(r.out) + size * (sample * r.out_sample + row * r.out_row +
                                             column * r.out_column + channel * r.out_channel);
}

ISP_INLINE HalfWord to_half(Element type, Vec x) {
  return type == Element::bfloat16 ? to_bfloat16(x) : to_float16(x);
}

// Stores that go around the caches; `p` is aligned to the vector.
ISP_INLINE void stream(void* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(static_cast<float*>(p), (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(static_cast<float*>(p), (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(static_cast<float*>(p), (__m128)v);
#else
  memcpy(p, &v, sizeof(v));
#endif
}

ISP_INLINE void stream_half(void* p, HalfWord v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#elif defined(__AVX2__)
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#else
  memcpy(p, &v, sizeof(v));
#endif
}

// Rounds to the nearest.
static void store_halves(Element type, const float* in, int64_t count, char* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_half(out + 2 * i, to_half(type, load(in + i)));
  if (i == count) return;
  Vec rest = {};
  memcpy(&rest, in + i, 4 * (count - i));
  const HalfWord half = to_half(type, rest);
  memcpy(out + 2 * i, &half, 2 * (count - i));
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
