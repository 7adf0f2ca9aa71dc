// From the mosaic to a tile of the convolution's input in shared memory.
//
// A tile is what kTileRows x kTileColumns output pixels read. Its sensor values come by asynchronous
// copies of 16 bytes (stage_tile); each 2x2 period of them is then normalised, clamped, mixed, curved
// and padded once (convert_tile), and left as its four planes R, Gr, Gb, B side by side: two words of
// 16-bit operands, or four of float32. The products read their im2col fragments from there.
#pragma once

#include "cuda/device.h"
#include "cuda/raw_conv/call.h"

namespace isp_distill::cuda {

// One of the operands' types: how four planes are packed, and what multiplies them.
struct BFloat16 {
  static constexpr int kWords = 2, kBytes = 2;
  static constexpr uint32_t kOne = 0x3f803f80;  // both halves of a word
  using Word4 = Two;
  static ISP_DEVICE Two pack(const float (&x)[4]) {
    return {{pack_bfloat16(x[0], x[1]), pack_bfloat16(x[2], x[3])}};
  }
  static ISP_DEVICE uint32_t pair(float low, float high) { return pack_bfloat16(low, high); }
  static ISP_DEVICE float value(const void* at) { return from_bfloat16(load_as<uint16_t>(at)); }
  static ISP_DEVICE float element(const Four& all, int j) {
    return float_of(j % 2 ? all.word[j / 2] & 0xffff0000u : all.word[j / 2] << 16);
  }
  static ISP_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bfloat16(d, a, b);
  }
};
struct Float16 {
  static constexpr int kWords = 2, kBytes = 2;
  static constexpr uint32_t kOne = 0x3c003c00;
  using Word4 = Two;
  static ISP_DEVICE Two pack(const float (&x)[4]) {
    return {{pack_float16(x[0], x[1]), pack_float16(x[2], x[3])}};
  }
  static ISP_DEVICE uint32_t pair(float low, float high) { return pack_float16(low, high); }
  static ISP_DEVICE float value(const void* at) { return from_float16(load_as<uint16_t>(at)); }
  static ISP_DEVICE float element(const Four& all, int j) {
    return from_float16(static_cast<uint16_t>(all.word[j / 2] >> 16 * (j % 2)));
  }
  static ISP_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_float16(d, a, b);
  }
};
// Three TensorFloat-32 products keep float32's accuracy but for about two bits: each operand is split
// into its leading 11 bits and the rest, and only the product of the two rests is left out.
struct Float32 {
  static constexpr int kWords = 4, kBytes = 4;
  static constexpr uint32_t kOne = 0x3f800000;
  using Word4 = Four;
  static ISP_DEVICE Four pack(const float (&x)[4]) {
    return {{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}};
  }
  static ISP_DEVICE float value(const void* at) { return load_as<float>(at); }
  static ISP_DEVICE float element(const Four& all, int j) { return float_of(all.word[j]); }
  static ISP_DEVICE uint32_t leading(uint32_t x) { return x & 0xffffe000u; }
  static ISP_DEVICE uint32_t rest(uint32_t x) {
    return bits_of(float_of(x) - float_of(leading(x)));
  }
  static ISP_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t a_lead[4] = {leading(a[0]), leading(a[1]), leading(a[2]), leading(a[3])};
    const uint32_t a_rest[4] = {rest(a[0]), rest(a[1]), rest(a[2]), rest(a[3])};
    const uint32_t b_lead[2] = {leading(b[0]), leading(b[1])};
    const uint32_t b_rest[2] = {rest(b[0]), rest(b[1])};
    multiply_tf32(d, a_rest, b_lead);
    multiply_tf32(d, a_lead, b_rest);
    multiply_tf32(d, a_lead, b_lead);
  }
};

// Where a tile lies: its sample, first output pixel, and first packed row and column of its input.
struct Place {
  int sample, out_row, out_column, row, column;
};

ISP_DEVICE Place place_of(const RawConvCall& c, int64_t tile) {
  const int sample = static_cast<int>(tile / c.tiles_of_sample);
  const int index = static_cast<int>(tile % c.tiles_of_sample);
  const int out_row = index / c.tile_columns * kTileRows;
  const int out_column = index % c.tile_columns * kTileColumns;
  return {sample, out_row, out_column, out_row * c.stride - c.top, out_column * c.stride - c.left};
}

// Bytes from the beginning of a mosaic's row to the pair of pixels at packed column `column`, which may be
// negative; where packed, to the four pixels that the pair is part of.
ISP_DEVICE int64_t pair_byte(const RawConvCall& c, int64_t column) {
  if (c.packing == Packing::none) return 2 * column * sensor_bytes(c.sensor);
  return (column >> 1) * bytes_of_four(c.packing);
}

// Likewise to where a tile's copy of the row begins: rounded down to 16.
ISP_DEVICE int64_t first_byte(const RawConvCall& c, const Place& place) {
  return pair_byte(c, place.column) & ~int64_t(15);
}

template <class T>
ISP_DEVICE void copy_element(char* to, const char* from) {
  store_as<T>(to, load_as<T>(from));
}

// Starts the copies of a tile's sensor values. What lies outside the mosaic is not written.
ISP_DEVICE void stage_tile(const RawConvCall& c, const Layout& l, const Place& place, int size) {
  char* raw = shared_memory() + l.raw;
  const int64_t begin = first_byte(c, place), length = row_bytes(c, int64_t(2) * c.width);
  const int units = l.raw_pitch / 16, rows = 2 * l.rows;
  const char* sample = static_cast<const char*>(c.mosaic) + place.sample * c.mosaic_sample * size;
  for (int i = threadIdx.x; i < rows * units; i += kThreads) {
    const int row = i / units, unit = i % units;
    const int source = 2 * place.row + row;
    const int64_t at = begin + 16 * unit;
    if (source < 0 || source >= 2 * c.height || at < 0 || at >= length) continue;
    const char* from = sample + source * c.mosaic_row * size + at;
    char* to = raw + row * l.raw_pitch + 16 * unit;
    const int bytes = length - at < 16 ? static_cast<int>(length - at) : 16;
    if (c.aligned) {
      copy_16(to, from, bytes);
    } else if (size == 2) {
      for (int b = 0; b < bytes; b += 2) copy_element<uint16_t>(to + b, from + b);
    } else if (size == 4) {
      for (int b = 0; b < bytes; b += 4) copy_element<uint32_t>(to + b, from + b);
    } else {
      for (int b = 0; b < bytes; ++b) copy_element<uint8_t>(to + b, from + b);
    }
  }
}

// Two neighbours of a row, at a multiple of twice their size.
ISP_DEVICE void load_pair(Sensor sensor, const char* at, float& first, float& second) {
  if (sensor == Sensor::uint16) {
    const uint32_t both = load_as<uint32_t>(at);
    first = static_cast<float>(both & 0xffff), second = static_cast<float>(both >> 16);
  } else if (sensor == Sensor::uint8) {
    const uint32_t both = load_as<uint16_t>(at);
    first = static_cast<float>(both & 0xff), second = static_cast<float>(both >> 8);
  } else if (sensor == Sensor::int16) {
    const uint32_t both = load_as<uint32_t>(at);
    first = static_cast<int16_t>(both & 0xffff), second = static_cast<int16_t>(both >> 16);
  } else if (sensor == Sensor::float16) {
    const uint32_t both = load_as<uint32_t>(at);
    first = from_float16(both & 0xffff), second = from_float16(both >> 16);
  } else {
    const Two both = load_as<Two>(at);
    const bool integer = sensor == Sensor::int32;
    first = integer ? static_cast<int32_t>(both.word[0]) : float_of(both.word[0]);
    second = integer ? static_cast<int32_t>(both.word[1]) : float_of(both.word[1]);
  }
}

ISP_DEVICE int byte_at(const char* at) { return load_as<uint8_t>(at); }

// The same of packed bytes: `four` is where the four pixels begin, `second` whether theirs is the second pair.
ISP_DEVICE void load_packed_pair(Packing packing, const char* four, int second, float& first,
                                 float& other) {
  int a, b;
  if (packing == Packing::mipi10) {
    const int low = byte_at(four + 4) >> 4 * second;
    a = byte_at(four + 2 * second) << 2 | (low & 3);
    b = byte_at(four + 2 * second + 1) << 2 | (low >> 2 & 3);
  } else if (packing == Packing::mipi14) {
    const int low = (byte_at(four + 4 + second) | byte_at(four + 5 + second) << 8) >> 4 * second;
    a = byte_at(four + 2 * second) << 6 | (low & 63);
    b = byte_at(four + 2 * second + 1) << 6 | (low >> 6 & 63);
  } else {
    const char* at = four + (packing == Packing::pfnc10p ? 2 : 3) * second;
    const int b0 = byte_at(at), b1 = byte_at(at + 1), b2 = byte_at(at + 2);
    if (packing == Packing::mipi12) {
      a = b0 << 4 | (b2 & 15), b = b1 << 4 | b2 >> 4;
    } else if (packing == Packing::gige12packed) {
      a = b0 << 4 | (b1 & 15), b = b2 << 4 | b1 >> 4;
    } else if (packing == Packing::pfnc12p) {
      a = b0 | (b1 & 15) << 8, b = b1 >> 4 | b2 << 4;
    } else {
      const int bits = (b0 | b1 << 8 | b2 << 16) >> 4 * second;
      a = bits & 1023, b = bits >> 10 & 1023;
    }
  }
  first = static_cast<float>(a), other = static_cast<float>(b);
}

// A code's linear value, those beyond the table's ends held.
ISP_DEVICE float linear_value(const RawConvCall& c, const Place& place, float code) {
  const float last = static_cast<float>(c.last_code);
  const float held = code < 0.0f ? 0.0f : code > last ? last : code;
  return c.linearise[place.sample * c.table_step + static_cast<int>(held)];
}

// Between 0 and 1; NaN stays NaN, as in torch.
ISP_DEVICE float clamped(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

ISP_DEVICE float at_least(float x, float least) { return x < least ? least : x; }

ISP_DEVICE float curved(float x, Curve curve, float gamma) {
  if (curve == Curve::sqrt) return square_root(at_least(x, 1e-8f));
  // mu-law companding, ITU-T G.711: log(1 + 255 x) / log(256).
  if (curve == Curve::log) return log_2(1.0f + 255.0f * at_least(x, 0.0f)) * 0.125f;
  if (curve == Curve::gamma) return exp_2(gamma * log_2(at_least(x, 1e-8f)));
  return x;
}

// The planes of the period at a row and a column of a tile; `raw`: of the tile's first byte.
ISP_DEVICE void develop_period(const RawConvCall& c, const Layout& l, const Place& place,
                               const char* raw, int row, int column, float (&plane)[4]) {
  const int pattern = static_cast<int>(c.pattern[place.sample]) & 3;
  const float* black = c.black + 4 * place.sample;
  const float* scale = c.scale + 4 * place.sample;
  const int64_t x = int64_t(place.column) + column;
  const char* at = raw + 2 * row * l.raw_pitch +
                   static_cast<int>(pair_byte(c, x) - first_byte(c, place));
  // Plane k is site `pattern ^ k`: which row holds R and Gr, and whether columns change places.
  const int first = (pattern >> 1) * l.raw_pitch, second = l.raw_pitch - first;
  float top[2], bottom[2];
  if (c.packing == Packing::none) {
    load_pair(c.sensor, at + first, top[0], top[1]);
    load_pair(c.sensor, at + second, bottom[0], bottom[1]);
  } else {
    load_packed_pair(c.packing, at + first, x & 1, top[0], top[1]);
    load_packed_pair(c.packing, at + second, x & 1, bottom[0], bottom[1]);
  }
  const bool swap = pattern & 1;
  plane[0] = swap ? top[1] : top[0], plane[1] = swap ? top[0] : top[1];
  plane[2] = swap ? bottom[1] : bottom[0], plane[3] = swap ? bottom[0] : bottom[1];
  if (c.linearise) {
    ISP_UNROLL for (int k = 0; k < 4; ++k) plane[k] = linear_value(c, place, plane[k]);
  }
  ISP_UNROLL for (int k = 0; k < 4; ++k) {
    plane[k] = (plane[k] - black[k]) * scale[k];
    if (c.clip) plane[k] = clamped(plane[k]);
  }
  if (c.mix) {
    const float* mix = c.mix + 16 * place.sample;
    float mixed[4];
    ISP_UNROLL for (int k = 0; k < 4; ++k) {
      mixed[k] = mix[4 * k] * plane[0] + mix[4 * k + 1] * plane[1] + mix[4 * k + 2] * plane[2] +
                 mix[4 * k + 3] * plane[3];
      if (c.clip) mixed[k] = clamped(mixed[k]);
    }
    ISP_UNROLL for (int k = 0; k < 4; ++k) plane[k] = mixed[k];
  }
  const float gamma = c.curve == Curve::gamma ? *c.gamma : 1.0f;
  ISP_UNROLL for (int k = 0; k < 4; ++k) plane[k] = curved(plane[k], c.curve, gamma);
}

// Converts the staged values and hands them to `keep(row, column, planes)`. Beyond the mosaic they are
// the padding; beyond what the output's pixels read, zero.
template <class Keep>
ISP_DEVICE void convert_tile(const RawConvCall& c, const Layout& l, const Place& place,
                             const Keep& keep) {
  const char* raw = shared_memory() + l.raw;
  const int rows = (c.out_height - place.out_row - 1) * c.stride + c.kernel;
  const int columns = (c.out_width - place.out_column - 1) * c.stride + c.kernel;
  for (int i = threadIdx.x; i < l.rows * l.columns; i += kThreads) {
    const int row = i / l.columns, column = i % l.columns;
    const int y = place.row + row, x = place.column + column;
    float plane[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row < rows && column < columns) {
      if (y >= 0 && y < c.height && x >= 0 && x < c.width) {
        develop_period(c, l, place, raw, row, column, plane);
      } else if (c.padding_value) {
        ISP_UNROLL for (int k = 0; k < 4; ++k) plane[k] = c.padding_value[k];
      }
    }
    keep(row, column, plane);
  }
}

}  // namespace isp_distill::cuda
