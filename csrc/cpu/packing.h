// Packed codes of 10, 12 or 14 bits to whole ones, where a row is read: see isp_distill/raw/packings.py
// for where each bit lies.
//
// Eight pixels of every packing fit one 16-byte load, and a byte shuffle brings each code's bits together:
//
//   MIPI, GigE   the high byte of each pixel to the upper half of its own 16 bits; in a second shuffle what
//                holds its low bits, moved below the high byte by a multiplication (the variable shift of
//                16-bit lanes that AVX2 has not); the two joined, and shifted down to the code.
//   PFNC         a stream of bits: the two bytes that hold a code, multiplied until its highest bit is the
//                lane's highest, and shifted down again.
//
// Predicted: 9 instructions for 16 pixels with AVX2, load and store included; 6 for PFNC.
#pragma once

#include "cpu/mosaic.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// Bits of a code, which is also how many bytes eight pixels take.
ISP_INLINE constexpr int bits_of(Packing packing) {
  switch (packing) {
    case Packing::mipi10:
    case Packing::pfnc10p:
      return 10;
    case Packing::mipi14:
      return 14;
    default:
      return 12;
  }
}

// Groups begin at multiples of so many pixels, of every packing.
constexpr int64_t kGroup = 4;

// The bytes of a row of so many pixels; the last group is whole.
template <Packing packing>
ISP_INLINE constexpr int64_t packed_bytes(int64_t pixels) {
  constexpr int64_t group = bits_of(packing) == 12 ? 2 : 4;
  return (pixels + group - 1) / group * group * bits_of(packing) / 8;
}

// The code of pixel x of a row, by itself.
template <Packing packing>
ISP_INLINE uint16_t code_at(const uint8_t* row, int64_t x) {
  constexpr int bits = bits_of(packing);
  if constexpr (packing == Packing::mipi10) {
    const uint8_t* group = row + x / 4 * 5;
    return (uint16_t)(group[x % 4] << 2 | (group[4] >> 2 * (x % 4) & 3));
  } else if constexpr (packing == Packing::mipi12) {
    const uint8_t* group = row + x / 2 * 3;
    return (uint16_t)(group[x % 2] << 4 | (group[2] >> 4 * (x % 2) & 15));
  } else if constexpr (packing == Packing::gige12packed) {
    const uint8_t* group = row + x / 2 * 3;
    return (uint16_t)(group[2 * (x % 2)] << 4 | (group[1] >> 4 * (x % 2) & 15));
  } else if constexpr (packing == Packing::mipi14) {
    const uint8_t* group = row + x / 4 * 7;
    const int low = (group[4] | group[5] << 8 | group[6] << 16) >> 6 * (x % 4) & 63;
    return (uint16_t)(group[x % 4] << 6 | low);
  } else {
    const uint8_t* at = row + x * bits / 8;
    return (uint16_t)((at[0] | at[1] << 8) >> x * bits % 8 & ((1 << bits) - 1));
  }
}

#if defined(__AVX2__) || defined(__aarch64__)
#define ISP_SHUFFLES_BYTES 1

// Of eight pixels: the bytes that make each pixel's 16 bits (kNothing: zero), and its factor.
struct Shuffles {
  alignas(16) uint8_t high[16] = {}, low[16] = {};
  alignas(16) uint16_t factor[8] = {};
};

constexpr uint8_t kNothing = 0x80;

template <Packing packing>
constexpr Shuffles make_shuffles() {
  constexpr int bits = bits_of(packing);
  constexpr bool stream = packing == Packing::pfnc10p || packing == Packing::pfnc12p;
  Shuffles made;
  for (int x = 0; x < 8; ++x) {
    int low[2] = {kNothing, kNothing}, high = kNothing, power = 0;
    const int group = bits == 12 ? x / 2 * 3 : x / 4 * bits / 2, j = bits == 12 ? x % 2 : x % 4;
    if (stream) {
      low[0] = x * bits / 8, low[1] = low[0] + 1;
      power = 16 - bits - x * bits % 8;
    } else if (bits == 14) {
      // Bits 6 j and up of three bytes, so that a shift to the right, by 16 - power, brings the lowest
      // to bit 2.
      const int first = group + 4 + 6 * j / 8, offset = 6 * j % 8;
      high = group + j;
      low[0] = j == 1 || j == 2 ? first : kNothing;
      low[1] = j == 1 || j == 2 ? first + 1 : first;
      power = 16 - (low[0] == kNothing ? 8 + offset - 2 : offset - 2);
    } else {
      // The low bits of a group's pixels share a byte; the lowest comes to bit 16 - bits.
      high = packing == Packing::gige12packed ? group + 2 * j : group + j;
      low[1] = packing == Packing::gige12packed ? group + 1 : group + (bits == 10 ? 4 : 2);
      power = 16 - (8 + (bits - 8) * j - (16 - bits));
    }
    made.high[2 * x] = kNothing, made.high[2 * x + 1] = (uint8_t)high;
    made.low[2 * x] = (uint8_t)low[0], made.low[2 * x + 1] = (uint8_t)low[1];
    made.factor[x] = (uint16_t)(1 << power);
  }
  return made;
}

template <Packing packing>
constexpr Shuffles kShuffles = make_shuffles<packing>();

#endif

// Pixels that are unpacked at once, and the bytes that are read for them.
#if defined(__AVX2__)
constexpr int64_t kUnpacked = 16;
#else
constexpr int64_t kUnpacked = 8;
#endif
template <Packing packing>
constexpr int64_t kPackedRead =
#if defined(ISP_SHUFFLES_BYTES)
    (kUnpacked / 8 - 1) * bits_of(packing) + 16;
#else
    bits_of(packing);
#endif

// What unpack_block multiplies and shuffles with, in registers for as long as a row.
template <Packing packing>
struct Unpacking {
  static constexpr int kBits = bits_of(packing);
  static constexpr bool kStream = packing == Packing::pfnc10p || packing == Packing::pfnc12p;
  // The low bits lie below the high byte, above what the last shift drops.
  static constexpr short kMask = 0xff & ~((1 << (16 - kBits)) - 1);
#if defined(__AVX2__)
  __m256i low = twice(kShuffles<packing>.low), high = twice(kShuffles<packing>.high);
  __m256i factor = twice(kShuffles<packing>.factor), mask = _mm256_set1_epi16(kMask);

  static ISP_MEMBER __m256i twice(const void* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(p)));
  }
#elif defined(__aarch64__)
  uint8x16_t low = vld1q_u8(kShuffles<packing>.low), high = vld1q_u8(kShuffles<packing>.high);
  uint16x8_t factor = vld1q_u16(kShuffles<packing>.factor), mask = vdupq_n_u16((uint16_t)kMask);
#endif
};

// kUnpacked codes from the bytes of the first one's group on.
template <Packing packing>
ISP_INLINE void unpack_block(
    [[maybe_unused]] const Unpacking<packing>& with, const uint8_t* in, uint16_t* out) {
  [[maybe_unused]] constexpr int bits = bits_of(packing);
#if defined(__AVX2__)
  const __m256i bytes = _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + bits)), 1);
  const __m256i low = _mm256_shuffle_epi8(bytes, with.low);
  __m256i codes;
  if constexpr (Unpacking<packing>::kStream) {
    codes = _mm256_mullo_epi16(low, with.factor);
  } else {
    codes = _mm256_and_si256(_mm256_mulhi_epu16(low, with.factor), with.mask);
    codes = _mm256_or_si256(codes, _mm256_shuffle_epi8(bytes, with.high));
  }
  codes = _mm256_srli_epi16(codes, 16 - bits);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes);
#elif defined(__aarch64__)
  const uint8x16_t bytes = vld1q_u8(in);
  // An index beyond the table gives zero.
  const uint16x8_t low = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, with.low));
  uint16x8_t codes;
  if constexpr (Unpacking<packing>::kStream) {
    codes = vmulq_u16(low, with.factor);
  } else {
    const uint32x4_t a = vmull_u16(vget_low_u16(low), vget_low_u16(with.factor));
    const uint32x4_t b = vmull_high_u16(low, with.factor);
    codes = vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
    codes = vandq_u16(codes, with.mask);
    codes = vorrq_u16(codes, vreinterpretq_u16_u8(vqtbl1q_u8(bytes, with.high)));
  }
  vst1q_u16(out, vshrq_n_u16(codes, 16 - bits));
#else
#pragma GCC unroll 8
  for (int x = 0; x < 8; ++x) out[x] = code_at<packing>(in, x);
#endif
}

// What a row of `width` pixels in memory is.
struct PackedRow {
  const uint8_t* bytes;
  int64_t width;
};

// The codes of `count` pixels of a row from pixel `begin` on, a multiple of kGroup; writes up to
// kUnpacked - 1 more. Nothing is read beyond the row's last group.
template <Packing packing>
ISP_INLINE void unpack_pixels(const PackedRow& row, int64_t begin, int64_t count, uint16_t* out) {
  const uint8_t* end = row.bytes + packed_bytes<packing>(row.width);
  const uint8_t* in = row.bytes + packed_bytes<packing>(begin);
  constexpr int64_t step = kUnpacked * bits_of(packing) / 8;
  const Unpacking<packing> with;
  int64_t i = 0;
  for (; i < count && end - in >= kPackedRead<packing>; i += kUnpacked, in += step) {
    unpack_block(with, in, out + i);
  }
  for (; i < count; i += kUnpacked, in += step) {
    uint8_t rest[kPackedRead<packing>] = {};
    memcpy(rest, in, at_most(at_least(end - in, 0), kPackedRead<packing>));
    unpack_block(with, rest, out + i);
  }
}

// Runs use(tag) with tag.value the packing, for the template that a packing's code is.
template <Packing packing>
struct PackingTag {
  static constexpr Packing value = packing;
};

template <class Use>
ISP_INLINE void with_packing(Packing packing, Use use) {
  switch (packing) {
    case Packing::mipi10:
      return use(PackingTag<Packing::mipi10>());
    case Packing::mipi12:
      return use(PackingTag<Packing::mipi12>());
    case Packing::mipi14:
      return use(PackingTag<Packing::mipi14>());
    case Packing::pfnc10p:
      return use(PackingTag<Packing::pfnc10p>());
    case Packing::pfnc12p:
      return use(PackingTag<Packing::pfnc12p>());
    case Packing::gige12packed:
      return use(PackingTag<Packing::gige12packed>());
    case Packing::none:
      return;
  }
}

// As unpack_pixels, from any even pixel `begin` on: returns where its code is, in `out`, which has room
// for kGroup + kUnpacked codes more than `count`.
static uint16_t* unpack(
    Packing packing, const PackedRow& row, int64_t begin, int64_t count, uint16_t* out) {
  const int64_t first = begin / kGroup * kGroup;
  with_packing(packing, [&](auto tag) {
    unpack_pixels<decltype(tag)::value>(row, first, begin - first + count, out);
  });
  return out + (begin - first);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
