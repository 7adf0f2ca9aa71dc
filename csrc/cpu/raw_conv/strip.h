// Mosaic rows to normalised float rows: the only place where the packed float image exists, a few rows
// of it at a time, in the cache.
//
// A packed row (two mosaic rows) is converted once and serves every output row that reads it: the
// strip is a ring of `kernel` rows. Each row is kept as 4 planes x `phases` rows of floats, column
// s * j + p of the padded image at phase p, element j, so that the taps of a convolution of stride s
// read consecutive floats. Padding is written into the rows, so that the convolution has no edges.
#pragma once

#include "cpu/companding.h"
#include "cpu/packing.h"
#include "cpu/raw_conv/sites.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// ------------------------------------------------------------------------------ strided copies

// out[i] = in[s * i], for i < count; may read one float beyond the last one.
static void take_every(const float* in, int64_t s, int64_t count, float* out) {
  int64_t i = 0;
  if (s == 1) {
    memcpy(out, in, 4 * count);
    return;
  }
  if (s == 2) {
    for (; i + kLanes <= count; i += kLanes) {
      store(out + i, even(load(in + 2 * i), load(in + 2 * i + kLanes)));
    }
  }
  for (; i < count; ++i) out[i] = in[s * i];
}

// out[q][i] = in[4 i + q], for 4 i + q < count.
static void take_every_fourth(const float* in, int64_t count, float* const* out) {
  int64_t i = 0;
  for (; 4 * (i + kLanes) <= count; i += kLanes) {
    const float* p = in + 4 * i;
    const Vec a = load(p), b = load(p + kLanes), c = load(p + 2 * kLanes), d = load(p + 3 * kLanes);
    const Vec even0 = even(a, b), even1 = even(c, d), odd0 = odd(a, b), odd1 = odd(c, d);
    store(out[0] + i, even(even0, even1));
    store(out[1] + i, even(odd0, odd1));
    store(out[2] + i, odd(even0, even1));
    store(out[3] + i, odd(odd0, odd1));
  }
  for (int64_t column = 4 * i; column < count; ++column) out[column % 4][column / 4] = in[column];
}

// ----------------------------------------------------------------------------------- the strip

struct Strip {
  const RawConv* conv;
  int64_t sample;
  int64_t phases;   // min(kernel, stride): no tap reads the others
  int64_t length;   // floats per plane and phase
  int64_t first;    // packed column of phase 0, element 0; negative in the left padding
  int64_t next;     // first packed row not converted yet
  int64_t line;     // floats per plane of `packed`
  Camera camera;
  float* rows;      // [kernel][4][phases][length]
  float* padding;   // [4][phases][length]
  float* packed;    // [4][line]: one row before it is split into phases
  float* widened;   // [2][2 * line]: two mosaic rows, for what is widened, unpacked or linearised
  const float* table;  // the sample's linear values; null where its codes are linear
  uint16_t* codes;  // [2 * line]: one row of those, for what is unpacked and linearised
  // For the way back through the colours, null where there is none: what convert_sites keeps of each
  // row of the ring, [kernel][2][4][line]; in two phases, [kernel][2][4][phases][length] of that.
  float* kept;
};

// Tiles of at most kOverrun + 1 pixels may start at the last column.
constexpr int64_t kOverrun = 11;

// Rows that a tile reads together, as many as there are taps, lie an odd number of cache lines apart: an
// even one, as of 1024 floats, puts them all into a few sets of the first-level cache, which then misses
// at every load.
ISP_INLINE int64_t odd_lines(int64_t floats) { return 16 * ((floats + 15) / 16 | 1); }

ISP_INLINE int64_t strip_length(const RawConv& c, int64_t columns) {
  return odd_lines(round_up(columns + kOverrun, kLanes) + round_up((c.kernel - 1) / c.stride, kLanes));
}

ISP_INLINE int64_t strip_line(const RawConv& c, int64_t columns) {
  // Room for the last vector of what is unpacked and converted.
  return round_up(c.stride * (strip_length(c, columns) + kLanes) + c.kernel, kLanes);
}

ISP_INLINE int64_t strip_floats(const RawConv& c, int64_t columns) {
  const int64_t phases = at_most(c.kernel, c.stride);
  const int64_t row = 4 * phases * strip_length(c, columns);
  return (c.kernel + 1) * row + (4 + 4 + (c.companding.tables ? 1 : 0)) * strip_line(c, columns);
}

// The packed columns [begin, end) of the mosaic that a strip holds.
ISP_INLINE void strip_columns(const Strip& strip, int64_t* begin, int64_t* end) {
  const RawConv& c = *strip.conv;
  *begin = at_least(strip.first, 0);
  *end = at_most(c.width, strip.first + c.stride * (strip.length - 1) + strip.phases);
}

// The elements j in [*from, *to) of a phase that lie inside packed columns [begin, end).
ISP_INLINE void phase_range(
    const Strip& strip, int64_t phase, int64_t begin, int64_t end, int64_t* from, int64_t* to) {
  const int64_t s = strip.conv->stride, offset = strip.first + phase;
  *from = at_least(0, floor_div(begin - offset + s - 1, s));
  *to = at_most(strip.length, floor_div(end - offset + s - 1, s));
}

// The columns beyond the mosaic, in every row of the ring: no conversion writes them. The row of
// padding is padding throughout.
static void fill_padding(const Strip& strip) {
  const RawConv& c = *strip.conv;
  int64_t begin, end;
  strip_columns(strip, &begin, &end);
  float* row = strip.rows;
  for (int64_t r = 0; r <= c.kernel; ++r) {
    for (int64_t k = 0; k < 4; ++k) {
      for (int64_t phase = 0; phase < strip.phases; ++phase, row += strip.length) {
        int64_t from = strip.length, to = strip.length;
        if (r < c.kernel && begin < end) phase_range(strip, phase, begin, end, &from, &to);
        if (from >= to) from = to = strip.length;
        for (int64_t j = 0; j < from; ++j) row[j] = c.padding_value[k];
        for (int64_t j = to; j < strip.length; ++j) row[j] = c.padding_value[k];
      }
    }
  }
}

static Strip make_strip(const RawConv& c, const Piece& piece, float* workspace) {
  Strip strip;
  const int64_t columns = piece.column_end - piece.column_begin;
  strip.conv = &c;
  strip.sample = piece.sample;
  strip.phases = at_most(c.kernel, c.stride);
  strip.length = strip_length(c, columns);
  strip.first = c.stride * piece.column_begin - c.left;
  strip.next = 0;
  strip.line = strip_line(c, columns);
  strip.camera = camera_of(c, piece.sample);
  const int64_t row = 4 * strip.phases * strip.length;
  strip.rows = workspace;
  strip.padding = strip.rows + c.kernel * row;
  strip.packed = strip.padding + row;
  strip.widened = strip.packed + 4 * strip.line;
  strip.table =
      c.companding.tables ? c.companding.tables + piece.sample * c.companding.step : nullptr;
  strip.codes = reinterpret_cast<uint16_t*>(strip.widened + 4 * strip.line);
  strip.kept = nullptr;
  fill_padding(strip);
  return strip;
}

// Whether rows are converted right into their phases, and what is kept of them lies likewise.
ISP_INLINE bool in_two_phases(const Strip& strip) {
  return strip.conv->stride == 2 && strip.phases == 2;
}

ISP_INLINE int64_t kept_floats(const RawConv& c, int64_t columns) {
  return c.kernel * 2 * 4 * strip_line(c, columns);
}

ISP_INLINE float* kept_row(const Strip& strip, int64_t row) {
  return strip.kept + row % strip.conv->kernel * 2 * 4 * strip.line;
}

ISP_INLINE float* strip_row(const Strip& strip, int64_t row) {
  return strip.rows + row % strip.conv->kernel * 4 * strip.phases * strip.length;
}

// The linear values of a mosaic row that begins at element `start`, from column `begin` on.
static void linearise_row(
    const Strip& strip, int64_t start, int64_t begin, int64_t count, float* out) {
  const RawConv& c = *strip.conv;
  if (c.packing == Packing::none) {
    return linearise_elements(
        c.mosaic, c.mosaic_type, start + begin, count, strip.table, c.companding.last, out);
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(c.mosaic) + start;
  const uint16_t* codes = unpack(c.packing, {bytes, 2 * c.width}, begin, count, strip.codes);
  linearise_codes(codes, count, strip.table, c.companding.last, out);
}

// Pointers to the two mosaic rows of a packed row from packed column `begin` on, unpacked, linearised or
// widened if need be; returns the type to read them as.
static Element mosaic_rows(
    const Strip& strip, int64_t row, int64_t begin, int64_t count, const void** row0,
    const void** row1) {
  const RawConv& c = *strip.conv;
  const int64_t start = strip.sample * c.mosaic_sample + 2 * row * c.mosaic_row;
  if (strip.table) {
    linearise_row(strip, start, 2 * begin, 2 * count, strip.widened);
    linearise_row(strip, start + c.mosaic_row, 2 * begin, 2 * count, strip.widened + 2 * strip.line);
    *row0 = strip.widened;
    *row1 = strip.widened + 2 * strip.line;
    return Element::float32;
  }
  if (c.packing != Packing::none) {
    // Two bytes of the buffer's four hold a code: the rest is room for the last vector.
    const uint8_t* bytes = static_cast<const uint8_t*>(c.mosaic) + start;
    uint16_t* codes = reinterpret_cast<uint16_t*>(strip.widened);
    *row0 = unpack(c.packing, {bytes, 2 * c.width}, 2 * begin, 2 * count, codes);
    *row1 = unpack(c.packing, {bytes + c.mosaic_row, 2 * c.width}, 2 * begin, 2 * count,
                   codes + 4 * strip.line);
    return Element::uint16;
  }
  const int64_t at = start + 2 * begin;
  if (c.mosaic_type == Element::uint16 || c.mosaic_type == Element::int16) {
    *row0 = static_cast<const uint16_t*>(c.mosaic) + at;
    *row1 = static_cast<const uint16_t*>(c.mosaic) + at + c.mosaic_row;
    return c.mosaic_type;
  }
  if (c.mosaic_type == Element::float32) {
    *row0 = static_cast<const float*>(c.mosaic) + at;
    *row1 = static_cast<const float*>(c.mosaic) + at + c.mosaic_row;
  } else {
    widen(c.mosaic, c.mosaic_type, at, 2 * count, strip.widened);
    widen(c.mosaic, c.mosaic_type, at + c.mosaic_row, 2 * count, strip.widened + 2 * strip.line);
    *row0 = strip.widened;
    *row1 = strip.widened + 2 * strip.line;
  }
  return Element::float32;
}

// Calls use.template operator()<type>() with what only the call knows, and likewise <mixed, curve>().
template <class Use>
ISP_INLINE void with_type(Element type, const Use& use) {
  switch (type) {
    case Element::uint16:
      return use.template operator()<Element::uint16>();
    case Element::int16:
      return use.template operator()<Element::int16>();
    default:
      return use.template operator()<Element::float32>();
  }
}

template <Curve curve, class Use>
ISP_INLINE void with_mix(const RawConv& c, const Use& use) {
  if (c.mix) {
    use.template operator()<true, curve>();
  } else {
    use.template operator()<false, curve>();
  }
}

template <class Use>
ISP_INLINE void with_curve(const RawConv& c, const Use& use) {
  switch (c.curve) {
    case Curve::sqrt:
      return with_mix<Curve::sqrt>(c, use);
    case Curve::log:
      return with_mix<Curve::log>(c, use);
    case Curve::gamma:
      return with_mix<Curve::gamma>(c, use);
    default:
      return with_mix<Curve::linear>(c, use);
  }
}

// The two phases of a row of stride 2 that begins `at` columns after phase 0, element 0: column `begin` is
// element at / 2 of phase at % 2.
ISP_INLINE InTwo in_two(float* row, int64_t at, int64_t length) {
  float* even_phase = row + (at + 1) / 2;
  float* odd_phase = row + length + at / 2;
  return {at % 2 ? odd_phase : even_phase, at % 2 ? even_phase : odd_phase, 2 * length};
}

template <bool keep>
static void convert_row(const Strip& strip, int64_t row) {
  const RawConv& c = *strip.conv;
  int64_t begin, end;
  strip_columns(strip, &begin, &end);
  if (begin >= end) return;
  const int64_t count = end - begin;
  const void *row0, *row1;
  const Element type = mosaic_rows(strip, row, begin, count, &row0, &row1);
  float* out = strip_row(strip, row);
  float* kept = keep ? kept_row(strip, row) : nullptr;
  const int64_t at = begin - strip.first;
  with_type(type, [&]<Element of_type>() {
    with_curve(c, [&]<bool mixed, Curve curve>() {
      if (in_two_phases(strip)) {
        convert_sites_in_two<of_type, mixed, curve, keep>(
            row0, row1, count, strip.camera, in_two(out, at, strip.length),
            keep ? in_two(kept, at, strip.length) : InTwo{});
      } else {
        convert_sites<of_type, mixed, curve, keep>(
            row0, row1, count, strip.camera, strip.packed, kept, strip.line);
      }
    });
  });
  if (in_two_phases(strip)) return;
  for (int64_t k = 0; k < 4; ++k) {
    if (c.stride == 4) {
      // Column `begin + q` is element (at + q) / 4 of phase (at + q) % 4; a phase that no tap reads goes
      // where the mosaic's rows were widened, which are done with.
      float* to[4];
      for (int64_t q = 0; q < 4; ++q) {
        const int64_t phase = (at + q) % 4;
        to[q] = phase < strip.phases ? out + phase * strip.length + (at + q) / 4 : strip.widened;
      }
      take_every_fourth(strip.packed + k * strip.line, count, to);
      out += strip.phases * strip.length;
      continue;
    }
    for (int64_t phase = 0; phase < strip.phases; ++phase, out += strip.length) {
      int64_t from, to;
      phase_range(strip, phase, begin, end, &from, &to);
      if (from >= to) continue;
      const int64_t column = strip.first + phase + c.stride * from;
      take_every(strip.packed + k * strip.line + column - begin, c.stride, to - from, out + from);
    }
  }
}

// Brings the rows that output row `out_row` reads into the ring, and points taps[plane, row, column] at
// what each tap reads for the output column `column_begin` of the piece.
template <bool keep>
static void point_taps(Strip& strip, int64_t out_row, const float** taps) {
  const RawConv& c = *strip.conv;
  const int64_t top = out_row * c.stride - c.top;
  const int64_t end = at_most(top + c.kernel, c.height);
  for (strip.next = at_least(strip.next, at_least(top, 0)); strip.next < end; ++strip.next) {
    convert_row<keep>(strip, strip.next);
  }
  for (int64_t k = 0; k < 4; ++k) {
    for (int64_t y = top; y < top + c.kernel; ++y) {
      const float* row = y < 0 || y >= c.height ? strip.padding : strip_row(strip, y);
      row += k * strip.phases * strip.length;
      for (int64_t x = 0; x < c.kernel; ++x) {
        *taps++ = row + x % c.stride * strip.length + x / c.stride;
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
