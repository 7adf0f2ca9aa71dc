// render with the resize in linear light, where the picture is lower than the crop: resize vertically
// first, then demosaic the few rows that remain.
//
// After the clip at the sensor, demosaicing, colour matrix and resize are all linear, so their order is
// free. The demosaicing filters are symmetric vertically: of the sensor rows around an output row they
// see only the row, the sum of its two neighbours, and the sum of the two beyond (demosaic.h).
// Resizing those three vertically, for the even and the odd sensor rows apart, since these are
// demosaiced differently, gives six weighted sums of sensor rows for each row of the picture:
//
//   T0[p] = sum of v(r) x[r],  T1[p] = sum of v(r) (x[r-1] + x[r+1]),  T2[p] likewise with r-2, r+2,
//
// over the rows r of parity p in the support of the triangle v, x mirrored at the sensor's edges. They
// would take 12 multiply-adds a sensor value, 2 output rows having it in their support. But v is
// piecewise linear: v(r-1) + v(r+1) = 2 v(r) except at its three corners. So T1[p] = 2 T0[1-p] + C1[p]
// and T2[p] = 2 T0[p] + C2[p], exactly, where the corrections C have terms in the few rows around the
// corners alone: about 3 multiply-adds a sensor value at large ratios. Every sensor row is read once.
//
// Whole sensor values, which cameras give, become T0, T1 and T2 in segments.h. Here is the way for
// everything else, and for the first and last output row, whose triangles are cut: each sensor row in the
// order of memory is added to the sums that its list of terms names (tables.cpp).
#include "cpu/render/demosaic.h"
#include "cpu/render/finish.h"
#include "cpu/render/segments.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

// Sums of an output row, in the order T0[0], T0[1], C1[0], C1[1], C2[0], C2[1].
int64_t sums_of(Demosaic demosaic) {
  if (demosaic == Demosaic::superpixel || demosaic == Demosaic::none) return 2;
  return demosaic == Demosaic::bilinear ? 4 : 6;
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

// Where the sums of an output row are: those of pair i at pairs[i], in planes of even and odd columns.
struct SumPlanes {
  const float* pairs;
  int64_t plane;

  const float* of(int64_t sum, int64_t column) const { return pairs + (2 * sum + column) * plane; }
};

ReducedRows reduced_rows(const SumPlanes& sums, int parity, bool colour_even) {
  const int x = colour_even ? 0 : 1, y = 1 - x;
  return {sums.of(parity, x),     sums.of(parity, y),     sums.of(2 + parity, x),
          sums.of(2 + parity, y), sums.of(4 + parity, x), sums.of(4 + parity, y)};
}

// Pairs [begin, end) demosaiced, the even and the odd sensor rows added: whole vectors of columns.
// `blue`: the even rows are those with blue.
template <Demosaic method, bool colour_even>
void demosaic_sums(const SumPlanes& sums, int64_t begin, int64_t end, bool blue, float* const* rgb) {
  const ReducedRows even_rows = reduced_rows(sums, 0, colour_even);
  const ReducedRows odd_rows = reduced_rows(sums, 1, !colour_even);
  float *own = rgb[blue ? 2 : 0], *green = rgb[1], *other = rgb[blue ? 0 : 2];
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec a[2][3], b[2][3];  // of the even and of the odd rows; [in even, in odd columns]
    demosaic_pairs<method, colour_even>(even_rows, i, a[0], a[1]);
    demosaic_pairs<method, !colour_even>(odd_rows, i, b[0], b[1]);
    store_pairs(own + 2 * i, a[0][0] + b[0][2], a[1][0] + b[1][2]);
    store_pairs(green + 2 * i, a[0][1] + b[0][1], a[1][1] + b[1][1]);
    store_pairs(other + 2 * i, a[0][2] + b[0][0], a[1][2] + b[1][0]);
  }
}

void superpixel_sums(const SumPlanes& sums, int64_t begin, int64_t end, int64_t pattern,
                     const float* matrix, float* const* rgb) {
  const float* plane[4];
  for (int site = 0; site < 4; ++site) plane[site ^ pattern] = sums.of(site / 2, site % 2);
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec v[3];
    superpixel_colours(plane, matrix, i, v);
    for (int c = 0; c < 3; ++c) store(rgb[c] + i, v[c]);
  }
}

// The sums T0, T1, T2 of an output row to its colours, as wide as the sensor.
void demosaic(const Render& r, int64_t sample, const SumPlanes& sums, int64_t begin, int64_t end,
              float* const* rgb) {
  const int64_t pattern = r.pattern[sample] & 3;
  if (r.demosaic == Demosaic::superpixel) {
    return superpixel_sums(sums, begin, end, pattern, planes_matrix(r, sample), rgb);
  }
  // The plane (R, Gr, Gb, B) of site 0 is the pattern's code.
  const bool colour_even = pattern == 0 || pattern == 3, blue = pattern >= 2;
  auto run = colour_even ? demosaic_sums<Demosaic::malvar, true>
                         : demosaic_sums<Demosaic::malvar, false>;
  if (r.demosaic == Demosaic::bilinear) {
    run = colour_even ? demosaic_sums<Demosaic::bilinear, true>
                      : demosaic_sums<Demosaic::bilinear, false>;
  } else if (r.demosaic == Demosaic::none) {
    run = colour_even ? demosaic_sums<Demosaic::none, true> : demosaic_sums<Demosaic::none, false>;
  }
  run(sums, begin, end, blue, rgb);
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
  const int64_t pairs = most_pairs(r, source_columns);
  const int64_t terms = widened_floats(r, pairs) +
                        r.folded.active * sums_of(r.demosaic) * 2 * plane_length(pairs);
  *workspace = finisher_floats(pairs, columns) + at_least(terms, segment_floats(r.segments, pairs));
}

void render_folded(const Render& r, const RenderPiece& piece, float* workspace) {
  Finisher finisher = make_finisher(r, piece, workspace);
  const Span& span = finisher.span;
  workspace += finisher_floats(span.pairs, piece.column_end - piece.column_begin);
  const int64_t sample = piece.sample;
  const Levels levels = levels_of(r, sample);
  const auto by_terms = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    float *widened = workspace, *ring = widened + widened_floats(r, span.pairs);
    run_terms(r, sample, begin, end, span, levels, widened, ring, [&](int64_t row, const float* sums) {
      demosaic(r, sample, {sums + kPad, span.length}, 0, span.pairs, finisher.wide);
      finish_wide(finisher, row);
    });
  };
  const int64_t begin = at_least(piece.row_begin, r.segments.begin);
  const int64_t end = at_most(piece.row_end, r.segments.end);
  if (begin >= end) {
    by_terms(piece.row_begin, piece.row_end);
  } else {
    by_terms(piece.row_begin, begin);
    const auto develop = [&](const float* sums, int64_t origin, int64_t from, int64_t to) {
      demosaic(r, sample, {sums - origin, kPlane}, from, to, finisher.wide);
    };
    const auto finish = [&](int64_t row) { finish_wide(finisher, row); };
    const auto run = [&](auto* segments) {
      segments(r, sample, begin, end, span, levels, workspace, develop, finish);
    };
    using Develop = decltype(develop);
    using Finish = decltype(finish);
    if (r.demosaic == Demosaic::superpixel) run(run_segments<Demosaic::superpixel, Develop, Finish>);
    if (r.demosaic == Demosaic::none) run(run_segments<Demosaic::none, Develop, Finish>);
    if (r.demosaic == Demosaic::bilinear) run(run_segments<Demosaic::bilinear, Develop, Finish>);
    if (r.demosaic == Demosaic::malvar) run(run_segments<Demosaic::malvar, Develop, Finish>);
    by_terms(end, piece.row_end);
  }
  flush(finisher.writer);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
