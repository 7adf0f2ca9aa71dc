// Logits of any of three types to and from registers, and exchanges between a block's threads.
#pragma once

#include "cuda/distill_loss/math.h"

namespace isp_distill::cuda {

ISP_DEVICE int64_t item(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

ISP_DEVICE float load_one(const Logits& from, int64_t at) {
  const char* address = from.data + at * item(from.dtype);
  if (from.dtype == Dtype::float32) return load_as<float>(address);
  const uint16_t bits = load_as<uint16_t>(address);
  return from.dtype == Dtype::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

ISP_DEVICE void store_one(const Logits& to, int64_t at, float x) {
  char* address = to.data + at * item(to.dtype);
  if (to.dtype == Dtype::float32) return store_as(address, x);
  const uint32_t bits = to.dtype == Dtype::bfloat16 ? pack_bfloat16(x, 0) : pack_float16(x, 0);
  store_as(address, static_cast<uint16_t>(bits));
}

// Count (4 or 8) neighbours, in vectors of 16 bytes (4 neighbours of 16 bits: 8).
template <int Count>
ISP_DEVICE void load_vector(const Logits& from, int64_t at, float (&x)[Count]) {
  const char* address = from.data + at * item(from.dtype);
  if (from.dtype == Dtype::float32) {
    ISP_UNROLL for (int i = 0; i < Count; i += 4) {
      const Four four = load_as<Four>(address + 4 * i);
      ISP_UNROLL for (int j = 0; j < 4; ++j) x[i + j] = float_of(four.word[j]);
    }
    return;
  }
  uint32_t words[Count / 2];
  if constexpr (Count == 8) {
    const Four four = load_as<Four>(address);
    ISP_UNROLL for (int j = 0; j < 4; ++j) words[j] = four.word[j];
  } else {
    const Two two = load_as<Two>(address);
    words[0] = two.word[0], words[1] = two.word[1];
  }
  const bool brain = from.dtype == Dtype::bfloat16;
  ISP_UNROLL for (int j = 0; j < Count / 2; ++j) {
    const uint16_t low = static_cast<uint16_t>(words[j]);
    const uint16_t high = static_cast<uint16_t>(words[j] >> 16);
    x[2 * j] = brain ? from_bfloat16(low) : from_float16(low);
    x[2 * j + 1] = brain ? from_bfloat16(high) : from_float16(high);
  }
}

template <int Count>
ISP_DEVICE void store_vector(const Logits& to, int64_t at, const float (&x)[Count]) {
  char* address = to.data + at * item(to.dtype);
  if (to.dtype == Dtype::float32) {
    ISP_UNROLL for (int i = 0; i < Count; i += 4) {
      Four four;
      ISP_UNROLL for (int j = 0; j < 4; ++j) four.word[j] = bits_of(x[i + j]);
      store_as(address + 4 * i, four);
    }
    return;
  }
  uint32_t words[Count / 2];
  const bool brain = to.dtype == Dtype::bfloat16;
  ISP_UNROLL for (int j = 0; j < Count / 2; ++j) {
    words[j] = brain ? pack_bfloat16(x[2 * j], x[2 * j + 1]) : pack_float16(x[2 * j], x[2 * j + 1]);
  }
  if constexpr (Count == 8) {
    store_as(address, Four{{words[0], words[1], words[2], words[3]}});
  } else {
    store_as(address, Two{{words[0], words[1]}});
  }
}

// What the lane whose number differs in these bits holds.
#ifdef __CUDACC__
ISP_DEVICE uint32_t exchanged(uint32_t word, int bits) {
  return __shfl_xor_sync(0xffffffffu, word, bits);
}
#else
inline uint32_t exchanged(uint32_t word, int bits) {
  const unsigned now = host::block.now, lane = now % 32;
  // Two places in turn, as for the matrix instructions of host_twins.h.
  auto& lanes = host::block.exchange[host::block.fibres[now].products++ % 2][now / 32];
  lanes[lane][0] = word;
  __syncwarp();
  return lanes[lane ^ static_cast<unsigned>(bits)][0];
}
#endif

template <class T>
ISP_DEVICE T exchanged_wide(T value, int bits) {
  uint32_t words[2];
  memcpy(words, &value, 8);
  words[0] = exchanged(words[0], bits), words[1] = exchanged(words[1], bits);
  memcpy(&value, words, 8);
  return value;
}
// Adds up over a warp, the same in all of its lanes.
ISP_DEVICE void add_over_warp(double& loss, int64_t& count) {
  ISP_UNROLL for (int bits = 16; bits > 0; bits /= 2) {
    loss += exchanged_wide(loss, bits), count += exchanged_wide(count, bits);
  }
}

// The threads that share P rows: lanes whose numbers differ in bits from Step on, in one warp or in
// all of them. Every one of them gets the result, added up in the same order.
template <int P, int Step, bool Block>
struct Team {
  static constexpr int kSlots = Step * P;  // rows of a block, where it is one team

  float* shared;  // 8 warps of 4 kSlots words

  static ISP_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32); }
  static ISP_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }

  template <int N>
  ISP_DEVICE void sum(float (&x)[N][P]) const {
    static_assert(N <= 4);
    ISP_UNROLL for (int n = 0; n < N; ++n) {
      ISP_UNROLL for (int p = 0; p < P; ++p) {
        ISP_UNROLL for (int bits = 16; bits >= Step; bits /= 2) {
          x[n][p] += float_of(exchanged(bits_of(x[n][p]), bits));
        }
      }
    }
    if constexpr (!Block) return;
    const int slot = lane() % Step * P;
    if (lane() < Step) {
      ISP_UNROLL for (int n = 0; n < N; ++n) {
        ISP_UNROLL for (int p = 0; p < P; ++p) shared[(warp() * 4 + n) * kSlots + slot + p] = x[n][p];
      }
    }
    __syncthreads();
    ISP_UNROLL for (int n = 0; n < N; ++n) {
      ISP_UNROLL for (int p = 0; p < P; ++p) x[n][p] = 0;
    }
    // Rolled: the loads of all warps at once would take more registers than there are.
    ISP_ROLLED for (int w = 0; w < kLossThreads / 32; ++w) {
      ISP_UNROLL for (int n = 0; n < N; ++n) {
        ISP_UNROLL for (int p = 0; p < P; ++p) x[n][p] += shared[(w * 4 + n) * kSlots + slot + p];
      }
    }
    __syncthreads();
  }

  // Both choices of each row: student's and teacher's.
  ISP_DEVICE void best(Choice (&x)[2][P]) const {
    ISP_UNROLL for (int n = 0; n < 2; ++n) {
      ISP_UNROLL for (int p = 0; p < P; ++p) {
        ISP_UNROLL for (int bits = 16; bits >= Step; bits /= 2) {
          Choice other;
          other.top = float_of(exchanged(bits_of(x[n][p].top), bits));
          other.index = static_cast<int>(exchanged(static_cast<uint32_t>(x[n][p].index), bits));
          x[n][p] = better(x[n][p], other);
        }
      }
    }
    if constexpr (!Block) return;
    const int slot = lane() % Step * P;
    if (lane() < Step) {
      ISP_UNROLL for (int n = 0; n < 2; ++n) {
        ISP_UNROLL for (int p = 0; p < P; ++p) {
          shared[(warp() * 4 + 2 * n) * kSlots + slot + p] = x[n][p].top;
          shared[(warp() * 4 + 2 * n + 1) * kSlots + slot + p] =
              float_of(static_cast<uint32_t>(x[n][p].index));
        }
      }
    }
    __syncthreads();
    ISP_ROLLED for (int w = 0; w < kLossThreads / 32; ++w) {
      ISP_UNROLL for (int n = 0; n < 2; ++n) {
        ISP_UNROLL for (int p = 0; p < P; ++p) {
          const float* found = shared + (w * 4 + 2 * n) * kSlots + slot + p;
          x[n][p] = better(x[n][p], {found[0], static_cast<int>(bits_of(found[kSlots]))});
        }
      }
    }
    __syncthreads();
  }
};

}  // namespace isp_distill::cuda
