// The second half of both kernels: a row of the picture's height, still as wide as the sensor, resized
// along the row, coloured where the resize is in linear light, and written.
#pragma once

#include "cpu/render/colour.h"
#include "cpu/render/resize.h"
#include "cpu/render/rows.h"
#include "cpu/render/write.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

// Floats of a plane of a demosaiced row: whole vectors.
ISP_INLINE int64_t colour_length(int64_t pairs) { return round_up(pairs, kPad); }

struct Finisher {
  const Render* render;
  const RenderPiece* piece;
  Span span;
  int64_t planes;   // of a channel: even and odd columns, or one plane of periods (superpixel)
  float* wide[3];   // a row as wide as the span
  float* narrow[3]; // a row of the piece
  Writer writer;
};

ISP_INLINE int64_t wide_floats(int64_t pairs) { return 2 * colour_length(pairs) + kPad; }
ISP_INLINE int64_t narrow_floats(int64_t columns) { return round_up(columns, kPad); }

// For a piece that spans so many pairs and columns.
ISP_INLINE int64_t finisher_floats(int64_t pairs, int64_t columns) {
  return 3 * (wide_floats(pairs) + narrow_floats(columns)) + run_floats(columns) +
         held_floats(columns);
}

static Finisher make_finisher(const Render& r, const RenderPiece& piece, float* workspace) {
  Finisher f;
  f.render = &r;
  f.piece = &piece;
  f.span = span_of(r, piece);
  f.planes = r.demosaic == Demosaic::superpixel ? 1 : 2;
  const int64_t width = piece.column_end - piece.column_begin;
  for (int c = 0; c < 3; ++c) {
    f.wide[c] = workspace;
    f.narrow[c] = workspace + wide_floats(f.span.pairs);
    workspace = f.narrow[c] + narrow_floats(width);
  }
  f.writer = {&r, &piece, width, workspace, workspace + run_floats(width), 0, 0};
  return f;
}

static void colour_in_place(const Finisher& f, int64_t count, float* const* rgb) {
  const Render& r = *f.render;
  switch (r.tone) {
    case Tone::linear:
      return colour_row<Tone::linear>(r, f.piece->sample, count, rgb);
    case Tone::srgb:
      return colour_row<Tone::srgb>(r, f.piece->sample, count, rgb);
    case Tone::gamma:
      return colour_row<Tone::gamma>(r, f.piece->sample, count, rgb);
    case Tone::log:
      return colour_row<Tone::log>(r, f.piece->sample, count, rgb);
    default:
      return colour_row<Tone::smoothstep>(r, f.piece->sample, count, rgb);
  }
}

// From the wide rows on.
static void finish_wide(Finisher& f, int64_t row) {
  const Render& r = *f.render;
  float* rows[3];
  for (int c = 0; c < 3; ++c) rows[c] = f.wide[c] + f.span.skip;
  const int64_t begin = f.piece->column_begin, end = f.piece->column_end;
  if (!r.columns.identity) {
    resize_columns(r.columns, begin, end, r.columns.begin[begin], rows, f.narrow);
    for (int c = 0; c < 3; ++c) rows[c] = f.narrow[c];
  }
  if (r.resize_linear) colour_in_place(f, end - begin, rows);
  write_row(f.writer, row, rows);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
