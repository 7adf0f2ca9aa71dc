// render with the resize in linear light, where the picture is lower than the crop: resize vertically
// first, then demosaic the few rows that remain.
//
// After the clip at the sensor, demosaicing, colour matrix and resize are all linear, so their order is
// free. The demosaicing filters are symmetric vertically: of the sensor rows around an output row they
// see only the row, the sum of its two neighbours, and the sum of the two beyond (render_demosaic.h).
// Resizing those three vertically, for the even and the odd sensor rows apart, since these are
// demosaiced differently, gives six weighted sums of sensor rows for each row of the picture:
//
//   T0[p] = sum of v(r) x[r],  T1[p] = sum of v(r) (x[r-1] + x[r+1]),  T2[p] likewise with r-2, r+2,
//
// over the rows r of parity p in the support of the triangle v, x mirrored at the sensor's edges. They
// would take 12 multiply-adds a sensor value, 2 output rows having it in their support. But v is
// piecewise linear: v(r-1) + v(r+1) = 2 v(r) except at its three corners. So T1[p] = 2 T0[1-p] + C1[p]
// and T2[p] = 2 T0[p] + C2[p], exactly, where the corrections C have terms in the few rows around the
// corners alone: about 3 multiply-adds a sensor value at large ratios. Every sensor row is read once,
// in the order of memory, and added to the sums that its list of terms names (render_tables.cpp).
#include "cpu/render_demosaic.h"
#include "cpu/render_finish.h"
#include "cpu/render_segments.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// Sums of an output row, in the order T0[0], T0[1], C1[0], C1[1], C2[0], C2[1].
int64_t sums_of(Demosaic demosaic) {
  return demosaic == Demosaic::superpixel ? 2 : demosaic == Demosaic::bilinear ? 4 : 6;
}

// Adds weight times sensor row `row` to `count` sums at once, so that the row is normalised in registers
// and read once for all of them.
template <int count>
void add_to_sums(
    const Render& r, const Levels& levels, int64_t sample, int64_t row, const Span& span,
    float* widened, const float* weights, float* const* sums) {
  float* even_plane[count];
  Vec weight[count];
  for (int k = 0; k < count; ++k) {
    even_plane[k] = sums[k] + kPad;
    weight[k] = broadcast(weights[k]);
  }
  const int64_t length = span.length;
  for_each_pair(
      r, levels, sample, row, span, widened,
      [&](float a, float b) {
        for (int k = 0; k < count; ++k) {
          even_plane[k][-1] += weights[k] * a;
          even_plane[k][length - 1] += weights[k] * b;
        }
      },
      [&](int64_t i, Vec a, Vec b) __attribute__((always_inline)) {
        for (int k = 0; k < count; ++k) {
          float *even_sum = even_plane[k] + i, *odd_sum = even_sum + length;
          store(even_sum, load(even_sum) + weight[k] * a);
          store(odd_sum, load(odd_sum) + weight[k] * b);
        }
      });
}

constexpr int kTogether = 4;  // sums; more than that, and the pointers no longer fit the registers
using AddToSums = void(
    const Render&, const Levels&, int64_t, int64_t, const Span&, float*, const float*, float* const*);
constexpr AddToSums* kAddToSums[kTogether + 1] = {nullptr, add_to_sums<1>, add_to_sums<2>,
                                                  add_to_sums<3>, add_to_sums<4>};

// C1 and C2 to T1 and T2, in place; a sum is `floats` long.
void complete_sums(float* sums, int64_t count, int64_t floats) {
  for (int64_t s = 2; s < count; ++s) {
    const float* base = sums + (s < 4 ? 3 - s : s - 4) * floats;  // T0 of the other, the same parity
    float* sum = sums + s * floats;
    for (int64_t i = 0; i < floats; i += kLanes) store(sum + i, load(sum + i) + 2.0f * load(base + i));
  }
}

ReducedRows reduced_rows(const float* sums, int64_t floats, int parity, bool colour_even) {
  const int64_t x = kPad + (colour_even ? 0 : floats / 2), y = kPad + (colour_even ? floats / 2 : 0);
  const float *own = sums + parity * floats, *next = own + 2 * floats, *beyond = own + 4 * floats;
  return {own + x, own + y, next + x, next + y, beyond + x, beyond + y};
}

// The even and the odd sensor rows, demosaiced and added. `even_row_starts`: the plane (R, Gr, Gb, B)
// that stands first in the even rows.
template <Demosaic method, bool colour_even>
void demosaic_sums(const float* sums, int64_t floats, const Span& span, bool blue, float* out) {
  const ReducedRows even_rows = reduced_rows(sums, floats, 0, colour_even);
  const ReducedRows odd_rows = reduced_rows(sums, floats, 1, !colour_even);
  const int64_t length = colour_length(span.pairs);
  float *own = out + (blue ? 4 : 0) * length, *other = out + (blue ? 0 : 4) * length;
  float* green = out + 2 * length;
  for (int64_t i = 0; i < span.pairs; i += kLanes) {
    Vec a[2][3], b[2][3];  // of the even and of the odd rows; [in even, in odd columns]
    demosaic_pairs<method, colour_even>(even_rows, i, a[0], a[1]);
    demosaic_pairs<method, !colour_even>(odd_rows, i, b[0], b[1]);
    for (int plane = 0; plane < 2; ++plane) {
      const int64_t at = plane * length + i;
      store(own + at, a[plane][0] + b[plane][2]);
      store(green + at, a[plane][1] + b[plane][1]);
      store(other + at, a[plane][2] + b[plane][0]);
    }
  }
}

void superpixel_sums(const float* sums, int64_t floats, const Span& span, int64_t pattern, float* out) {
  const float* plane[4];
  for (int site = 0; site < 4; ++site) {
    plane[site ^ pattern] = sums + site / 2 * floats + site % 2 * span.length + kPad;
  }
  const int64_t length = colour_length(span.pairs);
  for (int64_t i = 0; i < span.pairs; i += kLanes) {
    store(out + i, load(plane[0] + i));
    store(out + length + i, 0.5f * (load(plane[1] + i) + load(plane[2] + i)));
    store(out + 2 * length + i, load(plane[3] + i));
  }
}

// The sums T0, T1, T2 of an output row to its colours, [3][planes][colour_length].
void demosaic(const Render& r, int64_t sample, const Span& span, float* sums, float* out) {
  const int64_t floats = 2 * span.length, pattern = r.pattern[sample] & 3;
  if (r.demosaic == Demosaic::superpixel) return superpixel_sums(sums, floats, span, pattern, out);
  // The plane (R, Gr, Gb, B) of site 0 is the pattern's code.
  const bool colour_even = pattern == 0 || pattern == 3, blue = pattern >= 2;
  const auto run = r.demosaic == Demosaic::bilinear
                       ? (colour_even ? demosaic_sums<Demosaic::bilinear, true>
                                      : demosaic_sums<Demosaic::bilinear, false>)
                       : (colour_even ? demosaic_sums<Demosaic::malvar, true>
                                      : demosaic_sums<Demosaic::malvar, false>);
  run(sums, floats, span, blue, out);
}

// One output row after the other, its sums finished when its last sensor row is read.
template <class Finish>
void run_terms(
    const Render& r, int64_t sample, int64_t begin, int64_t end, const Span& span,
    const Levels& levels, float* widened, float* ring, Finish finish) {
  const FoldedRows& folded = r.folded;
  const int64_t row_floats = 2 * span.length, sums_floats = sums_of(r.demosaic) * row_floats;
  const auto sums = [&](int64_t i) { return ring + i % folded.active * sums_floats; };
  int64_t started = begin, finished = begin;
  for (int64_t s = folded.first[begin]; s <= folded.last[end - 1]; ++s) {
    for (; started < end && folded.first[started] == s; ++started) {
      memset(sums(started), 0, 4 * sums_floats);
    }
    float weights[kTogether], *targets[kTogether];
    int together = 0;
    const auto add = [&]() {
      if (together == 0) return;
      kAddToSums[together](r, levels, sample, s, span, widened, weights, targets);
      together = 0;
    };
    for (int64_t t = folded.begin[s]; t < folded.begin[s + 1]; ++t) {
      const FoldedTerm& term = folded.terms[t];
      if (term.out_row < begin || term.out_row >= end) continue;
      weights[together] = term.weight;
      targets[together] = sums(term.out_row) + term.sum * row_floats;
      if (++together == kTogether) add();
    }
    add();
    for (; finished < end && folded.last[finished] == s; ++finished) {
      complete_sums(sums(finished), sums_of(r.demosaic), row_floats);
      finish(finished, sums(finished));
    }
  }
}

}  // namespace

void render_folded_sizes(
    const Render& r, int64_t source_columns, int64_t columns, int64_t* workspace) {
  const int64_t pairs = most_pairs(r, source_columns), row = 2 * plane_length(pairs);
  const int64_t sums = sums_of(r.demosaic) * row;
  *workspace = finisher_floats(pairs, columns) + round_up(2 * pairs, kPad) +
               6 * colour_length(pairs) +
               at_least(r.folded.active * sums, sums + segment_floats(r.segments, pairs));
}

void render_folded(const Render& r, const RenderPiece& piece, float* workspace) {
  Finisher finisher = make_finisher(r, piece, workspace);
  const Span& span = finisher.span;
  workspace += finisher_floats(span.pairs, piece.column_end - piece.column_begin);
  float *widened = workspace, *colours = widened + round_up(2 * span.pairs, kPad);
  float* sums = colours + 6 * colour_length(span.pairs);
  const int64_t sample = piece.sample;
  const Levels levels = levels_of(r, sample);
  const auto finish = [&](int64_t row, float* complete) {
    demosaic(r, sample, span, complete, colours);
    finish_row(finisher, row, colours);
  };
  const bool whole = are_whole(r, levels);
  const int64_t begin = whole ? at_least(piece.row_begin, r.segments.begin) : piece.row_end;
  const int64_t end = whole ? at_most(piece.row_end, r.segments.end) : piece.row_end;
  const auto by_terms = [&](int64_t from, int64_t to) {
    if (from < to) run_terms(r, sample, from, to, span, levels, widened, sums, finish);
  };
  if (begin >= end) {
    by_terms(piece.row_begin, piece.row_end);
  } else {
    by_terms(piece.row_begin, begin);
    float* state = sums + sums_of(r.demosaic) * 2 * span.length;
    const auto run = r.demosaic == Demosaic::superpixel ? run_segments<Demosaic::superpixel, decltype(finish)>
                     : r.demosaic == Demosaic::bilinear ? run_segments<Demosaic::bilinear, decltype(finish)>
                                                        : run_segments<Demosaic::malvar, decltype(finish)>;
    run(r, sample, begin, end, span, levels, make_segment_state(r, span, state), sums, finish);
    by_terms(end, piece.row_end);
  }
  flush(finisher.writer);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
