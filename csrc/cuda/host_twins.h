// The twins of device.h's instructions, for host.h.
#pragma once

#include "cuda/host.h"

inline void __syncthreads() {
  isp_distill::cuda::host::pause(isp_distill::cuda::host::State::at_block);
}
inline void __syncwarp() { isp_distill::cuda::host::pause(isp_distill::cuda::host::State::at_warp); }

namespace isp_distill::cuda {

inline void copy_16(char* shared, const char* global, int bytes) {
  if (uintptr_t(shared) % 16 || uintptr_t(global) % 16) host::fail("a copy of 16 bytes is not aligned");
  if (bytes < 0 || bytes > 16) host::fail("a copy of more than 16 bytes");
  host::block.fibres[host::block.now].groups.back().push_back({shared, global, bytes});
}
inline void commit_copies() { host::block.fibres[host::block.now].groups.emplace_back(); }
template <int N>
inline void wait_copies() {
  auto& groups = host::block.fibres[host::block.now].groups;
  while (groups.size() > N + 1) {
    for (const host::Copy& copy : groups.front()) {
      memset(copy.to, 0, 16);
      memcpy(copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

inline int anew(int x) { return x; }
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t round_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bfloat16(float low, float high) {
  return round_bfloat16(low) | round_bfloat16(high) << 16;
}
inline uint32_t round_float16(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}
inline uint32_t pack_float16(float low, float high) {
  return round_float16(low) | round_float16(high) << 16;
}
inline float from_float16(uint16_t bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
inline float log_2(float x) { return log2f(x); }
inline float exp_2(float x) { return exp2f(x); }
inline float error_function(float x) { return erff(x); }
inline float square_root(float x) { return sqrtf(x); }

// A matrix instruction: every lane leaves its fragments, all meet, each adds up its own four results.
// `A`, `B` take an element out of the fragments as PTX's manual lays them over the lanes.
template <int Depth, class A, class B>
inline void multiply_twin(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], A of_a,
                          B of_b) {
  const unsigned lane = host::block.now % 32;
  const unsigned turn = host::block.fibres[host::block.now].products++ % 2;
  auto& lanes = host::block.exchange[turn][host::block.now / 32];
  memcpy(lanes[lane], a, 16);
  memcpy(lanes[lane] + 4, b, 8);
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    float sum = 0;
    for (int k = 0; k < Depth; ++k) sum += of_a(lanes, row, k) * of_b(lanes, k, column);
    d[i] += sum;
  }
}

template <class ToFloat>
inline void multiply_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            ToFloat value) {
  const auto half = [&](uint32_t word, int k) { return value(uint16_t(k % 2 ? word >> 16 : word)); };
  multiply_twin<16>(
      d, a, b,
      [&](auto& lanes, int row, int k) {
        return half(lanes[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k);
      },
      [&](auto& lanes, int k, int column) {
        return half(lanes[column * 4 + k % 8 / 2][4 + k / 8], k);
      });
}
inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_halves(d, a, b, [](uint16_t bits) { return float_of(uint32_t(bits) << 16); });
}
inline void multiply_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_halves(d, a, b, from_float16);
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto value = [](uint32_t bits) { return float_of(bits & 0xffffe000); };
  multiply_twin<8>(
      d, a, b,
      [&](auto& lanes, int row, int k) {
        return value(lanes[row % 8 * 4 + k % 4][row / 8 + 2 * (k / 4)]);
      },
      [&](auto& lanes, int k, int column) { return value(lanes[column * 4 + k % 4][4 + k / 4]); });
}

}  // namespace isp_distill::cuda
