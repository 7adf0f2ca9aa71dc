// Finished rows of a piece to the picture: turned upright, in its type and layout.
//
// Where the sensor's rows are the picture's rows, each row is a run of consecutive elements (three, one
// a channel, or one of interleaved channels), possibly backwards. Where they are the picture's columns,
// rows are held back until there are kHeld of them, so that each cache line is written at once.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/render/store.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr int64_t kHeld = 16;

struct Writer {
  const Render* render;
  const RenderPiece* piece;
  int64_t width;
  float* run;    // [3 * width], one row arranged
  void* held;    // [kHeld][3][width] of the picture's type
  int64_t held_from, held_rows;
};

ISP_INLINE int64_t run_floats(int64_t columns) { return round_up(3 * columns, kPad) + kPad; }
ISP_INLINE int64_t held_floats(int64_t columns) { return round_up(kHeld * 3 * columns, kPad); }

// Elements in front of the first vector-aligned one.
ISP_INLINE int64_t unaligned(const char* p, int64_t size) {
  const int64_t vector = size * kLanes, over = (int64_t)((uintptr_t)p % (uintptr_t)vector);
  return over == 0 ? 0 : (vector - over) / size;
}

static void store_run(const Render& r, const float* in, int64_t count, char* out) {
  const bool wide = r.out_type == Element::float32;
  int64_t i = 0;
  if (r.streaming) {
    i = at_most(unaligned(out, wide ? 4 : 2), count);
    if (wide) {
      memcpy(out, in, 4 * i);
      for (; i + kLanes <= count; i += kLanes) stream(out + 4 * i, load(in + i));
    } else {
      store_halves(r.out_type, in, i, out);
      for (; i + kLanes <= count; i += kLanes) {
        stream_half(out + 2 * i, to_half(r.out_type, load(in + i)));
      }
    }
  }
  if (wide) {
    memcpy(out + 4 * i, in + i, 4 * (count - i));
  } else {
    store_halves(r.out_type, in + i, count - i, out + 2 * i);
  }
}

template <class T>
static void write_held(const Writer& w) {
  const Render& r = *w.render;
  const T* held = static_cast<const T*>(w.held);
  for (int64_t j = 0; j < w.width; ++j) {
    for (int c = 0; c < 3; ++c) {
      T* out = reinterpret_cast<T*>(
          address(r, w.piece->sample, w.held_from, w.piece->column_begin + j, c));
      const T* in = held + c * w.width + j;
      for (int64_t k = 0; k < w.held_rows; ++k) out[k * r.out_row] = in[k * 3 * w.width];
    }
  }
}

static void flush(Writer& w) {
  if (w.held_rows > 0) {
    if (w.render->out_type == Element::float32) {
      write_held<uint32_t>(w);
    } else {
      write_held<uint16_t>(w);
    }
    w.held_rows = 0;
  }
#if defined(__x86_64__)
  if (w.render->streaming) _mm_sfence();
#endif
}

// Rows come in ascending order.
static void write_row(Writer& w, int64_t row, const float* const* rgb) {
  const Render& r = *w.render;
  const int64_t width = w.width, sample = w.piece->sample, begin = w.piece->column_begin;
  const bool backwards = r.out_column < 0;
  const int64_t step = backwards ? -r.out_column : r.out_column;
  const int64_t first = backwards ? begin + width - 1 : begin;  // what comes first in memory
  if (step == 1) {
    for (int c = 0; c < 3; ++c) {
      const float* in = rgb[c];
      if (backwards) {
        for (int64_t j = 0; j < width; ++j) w.run[j] = in[width - 1 - j];
        in = w.run;
      }
      store_run(r, in, width, address(r, sample, row, first, c));
    }
  } else if (step == 3 && r.out_channel == 1) {
    for (int64_t j = 0; j < width; ++j) {
      const int64_t from = backwards ? width - 1 - j : j;
      for (int c = 0; c < 3; ++c) w.run[3 * j + c] = rgb[c][from];
    }
    store_run(r, w.run, 3 * width, address(r, sample, row, first, 0));
  } else {
    if (w.held_rows == 0) w.held_from = row;
    const int64_t size = r.out_type == Element::float32 ? 4 : 2;
    char* out = static_cast<char*>(w.held) + size * 3 * width * w.held_rows;
    for (int c = 0; c < 3; ++c, out += size * width) {
      if (size == 4) {
        memcpy(out, rgb[c], 4 * width);
      } else {
        store_halves(r.out_type, rgb[c], width, out);
      }
    }
    if (++w.held_rows == kHeld) flush(w);
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
