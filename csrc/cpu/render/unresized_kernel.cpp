// render at the sensor's own size, where the picture's rows are the sensor's: each pixel is developed in
// registers and written once.
//
// The time goes into the memory: 2 bytes read and 12 written for each pixel. So that the arithmetic runs
// while the memory works, there is no buffer between them but for a few vectors that wait for their tone:
// kLanes pairs are demosaiced, coloured, interleaved and stored at once, around the caches where the
// picture is large. Everything that is turned, mirrored, interleaved by channel or superpixel goes the
// general way (resized_kernel.cpp).
#include "cpu/render/develop.h"
#include "cpu/render/store.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// Where a row of a piece goes: three runs of `columns` elements, in front of which lie the `skip`
// columns of the first pair that are not part of the picture.
struct Target {
  char* run[3];  // of column -skip
  int64_t skip, columns;
  int64_t aligned;  // the first pair whose vectors are aligned in all three runs; -1 if none is
};

Target target_of(const Render& r, const RenderPiece& piece, const Span& span, int64_t row) {
  Target target;
  const int64_t size = r.out_type == Element::float32 ? 4 : 2, vector = size * kLanes;
  target.skip = span.skip;
  target.columns = piece.column_end - piece.column_begin;
  target.aligned = -1;
  uintptr_t misplaced = 0;
  for (int c = 0; c < 3; ++c) {
    target.run[c] = address(r, piece.sample, row, piece.column_begin, c) - size * span.skip;
    misplaced |= (uintptr_t)(target.run[c] - target.run[0]) % (uintptr_t)vector;
  }
  const int64_t before = (int64_t)((uintptr_t)target.run[0] % (uintptr_t)vector);
  if (r.streaming && misplaced == 0 && before % (2 * size) == 0) {
    target.aligned = before == 0 ? 0 : (vector - before) / (2 * size);
  }
  return target;
}

struct Affine {
  Vec slope[3], offset[3];
};

// The colours of kLanes pairs from pair i on, in the even and the odd columns, without their tone.
template <Demosaic method, bool colour_even, Tone tone>
ISP_INLINE void clipped_columns(
    const SensorRows& rows, int64_t i, const Colour& colour, Vec (&clipped)[2][3]) {
  Vec v[2][3];
  demosaic_pairs<method, colour_even>(rows, i, v[0], v[1]);
  for (int half = 0; half < 2; ++half) clipped_colours<tone>(v[half], colour, clipped[half]);
}

// Those with their tone: 2 * kLanes columns of three channels.
template <Tone tone>
ISP_INLINE void toned_columns(
    const Vec (&clipped)[2][3], const Colour& colour, const Affine& affine, Vec (*out)[2]) {
  Vec x[2][3];
  for (int half = 0; half < 2; ++half) {
    for (int c = 0; c < 3; ++c) x[half][c] = clipped[half][c];
    apply_tone<tone>(x[half], colour);
  }
  for (int c = 0; c < 3; ++c) {
    const Vec a = x[0][c] * affine.slope[c] + affine.offset[c];
    const Vec b = x[1][c] * affine.slope[c] + affine.offset[c];
    out[c][0] = interleave_low(a, b);
    out[c][1] = interleave_high(a, b);
  }
}

template <Demosaic method, bool colour_even, Tone tone>
ISP_INLINE void develop_columns(
    const SensorRows& rows, int64_t i, const Colour& colour, const Affine& affine, Vec (*out)[2]) {
  Vec clipped[2][3];
  clipped_columns<method, colour_even, tone>(rows, i, colour, clipped);
  toned_columns<tone>(clipped, colour, affine, out);
}

// Columns [from, to) of the vectors that start at pair i.
ISP_INLINE void store_part(
    const Target& target, Element type, int64_t i, int64_t from, int64_t to, Vec (*v)[2]) {
  for (int c = 0; c < 3; ++c) {
    float part[2 * kLanes];
    store(part, v[c][0]);
    store(part + kLanes, v[c][1]);
    const float* in = part + from - 2 * i;
    if (type == Element::float32) {
      memcpy(target.run[c] + 4 * from, in, 4 * (to - from));
    } else {
      store_halves(type, in, to - from, target.run[c] + 2 * from);
    }
  }
}

// All of the vectors that start at pair i.
template <bool streaming>
ISP_INLINE void store_all(const Target& target, Element type, int64_t i, Vec (*v)[2]) {
  for (int c = 0; c < 3; ++c) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = 2 * i + half * kLanes;
      if (type == Element::float32) {
        char* p = target.run[c] + 4 * at;
        if constexpr (streaming) {
          stream(p, v[c][half]);
        } else {
          store(reinterpret_cast<float*>(p), v[c][half]);
        }
      } else {
        char* p = target.run[c] + 2 * at;
        const HalfWord halves = to_half(type, v[c][half]);
        if constexpr (streaming) {
          stream_half(p, halves);
        } else {
          store_half(p, halves);
        }
      }
    }
  }
}

template <Demosaic method, bool colour_even, Tone tone>
void develop_row(
    const Render& r, const SensorRows& sensor_rows, const Colour& of_row, const Affine& of_call,
    const Target& of_piece) {
  // Copies, which the stores below cannot change for all that the compiler knows.
  const SensorRows rows = sensor_rows;
  const Colour colour = of_row;
  const Affine affine = of_call;
  const Target target = of_piece;
  const Element type = r.out_type;
  const int64_t end = target.skip + target.columns;
  const bool streaming = target.aligned >= 0;
  Vec v[3][2];
  int64_t i = streaming ? target.aligned : 0, from = target.skip;
  // The columns in front of the first whole vector.
  if (i == 0 && target.skip > 0) i = streaming ? kLanes / 2 : 1;
  if (2 * i > from) {
    develop_columns<method, colour_even, tone>(rows, 0, colour, affine, v);
    store_part(target, type, 0, from, at_most(2 * i, end), v);
  }
  const auto whole_vectors = [&]<bool streams>() __attribute__((always_inline)) {
    Vec waiting[kWaiting<tone>][2][3];
    while (2 * (i + kLanes) <= end) {
      const int64_t count = at_most(kWaiting<tone>, (end / 2 - i) / kLanes);
      for (int64_t k = 0; k < count; ++k) {
        clipped_columns<method, colour_even, tone>(rows, i + k * kLanes, colour, waiting[k]);
      }
      for (int64_t k = 0; k < count; ++k, i += kLanes) {
        toned_columns<tone>(waiting[k], colour, affine, v);
        store_all<streams>(target, type, i, v);
      }
    }
  };
  if (streaming) {
    whole_vectors.template operator()<true>();
  } else {
    whole_vectors.template operator()<false>();
  }
  if (2 * i < end) {
    develop_columns<method, colour_even, tone>(rows, i, colour, affine, v);
    store_part(target, type, i, 2 * i, end, v);
  }
}

using DevelopRow = void(
    const Render&, const SensorRows&, const Colour&, const Affine&, const Target&);

template <Demosaic method, bool colour_even>
DevelopRow* with_tone(Tone tone) {
  switch (tone) {
    case Tone::linear:
      return develop_row<method, colour_even, Tone::linear>;
    case Tone::srgb:
      return develop_row<method, colour_even, Tone::srgb>;
    case Tone::gamma:
      return develop_row<method, colour_even, Tone::gamma>;
    case Tone::log:
      return develop_row<method, colour_even, Tone::log>;
    default:
      return develop_row<method, colour_even, Tone::smoothstep>;
  }
}

DevelopRow* developing(const Render& r, bool colour_even) {
  if (r.demosaic == Demosaic::none) {
    return colour_even ? with_tone<Demosaic::none, true>(r.tone)
                       : with_tone<Demosaic::none, false>(r.tone);
  }
  if (r.demosaic == Demosaic::bilinear) {
    return colour_even ? with_tone<Demosaic::bilinear, true>(r.tone)
                       : with_tone<Demosaic::bilinear, false>(r.tone);
  }
  return colour_even ? with_tone<Demosaic::malvar, true>(r.tone)
                     : with_tone<Demosaic::malvar, false>(r.tone);
}

}  // namespace

void render_unresized_sizes(
    const Render& r, int64_t source_columns, int64_t, int64_t* workspace) {
  // The last vector of a row may start up to kLanes - 1 pairs off the planes' own vectors.
  *workspace = developer_floats(r, most_pairs(r, source_columns)) + 2 * kPad;
}

void render_unresized(const Render& r, const RenderPiece& piece, float* workspace) {
  const Span span = span_of(r, piece);
  Developer developer = make_developer(r, piece, span, workspace);
  DevelopRow* const develop[2] = {developing(r, false), developing(r, true)};
  Affine affine;
  for (int c = 0; c < 3; ++c) {
    affine.slope[c] = broadcast(r.slope[c]);
    affine.offset[c] = broadcast(r.offset[c]);
  }
  for (int64_t y = piece.row_begin; y < piece.row_end; ++y) {
    const BayerRow row = bayer_row(developer, y);
    develop[row.colour_even](r, row.rows, developer.colour[row.blue], affine,
                             target_of(r, piece, span, y));
  }
#if defined(__x86_64__)
  if (r.streaming) _mm_sfence();
#endif
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
