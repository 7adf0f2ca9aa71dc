// The device primitives that the CUDA kernels are written with.
//
// Compiled by nvcc, each is one or a few instructions. Compiled by a C++ compiler it is the twin of
// host.h, which runs a block's threads as fibres: the same kernel source then runs on the CPU.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define ISP_DEVICE __device__ __forceinline__
#define ISP_KERNEL(blocks) __global__ void __launch_bounds__(256, blocks)
#define ISP_CONSTANT const __grid_constant__
#define ISP_UNROLL _Pragma("unroll")
#define ISP_ROLLED _Pragma("unroll 1")

namespace isp_distill::cuda {

ISP_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// 16 bytes from global to shared memory behind the back of the registers, of which the first `bytes`
// are read and the rest become zero. They are there after wait_copies and a barrier.
ISP_DEVICE void copy_16(char* shared, const char* global, int bytes) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
ISP_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's groups of copies but for the last `N` of them.
template <int N>
ISP_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// d += a b for 16 x 16 x 8; a, b, d as PTX defines the fragments of mma.m16n8k16.
ISP_DEVICE void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
ISP_DEVICE void multiply_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += a b for 16 x 8 x 8 in TensorFloat-32: the lowest 13 bits of the operands are not looked at.
ISP_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two floats rounded to nearest even, the first in the low half.
ISP_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
ISP_DEVICE uint32_t pack_float16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
ISP_DEVICE float from_float16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
// The same number, of which the compiler knows nothing: what is computed from it stays where it stands,
// and takes no registers in the loop around.
ISP_DEVICE int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
ISP_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
ISP_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

ISP_DEVICE float log_2(float x) { return __log2f(x); }
// One instruction; below 2^-126 it gives 0, where exp2f takes four more for what is left of it.
ISP_DEVICE float exp_2(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
ISP_DEVICE float error_function(float x) { return erff(x); }
ISP_DEVICE float square_root(float x) { return sqrtf(x); }

}  // namespace isp_distill::cuda
#else
#include "cuda/host_twins.h"
#endif

namespace isp_distill::cuda {

// What 128-bit accesses move.
struct alignas(16) Four {
  uint32_t word[4];
};
struct alignas(8) Two {
  uint32_t word[2];
};

template <class T>
ISP_DEVICE T load_as(const void* from) {
  return *static_cast<const T*>(from);
}
template <class T>
ISP_DEVICE void store_as(void* to, T value) {
  *static_cast<T*>(to) = value;
}
ISP_DEVICE float from_bfloat16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

}  // namespace isp_distill::cuda
