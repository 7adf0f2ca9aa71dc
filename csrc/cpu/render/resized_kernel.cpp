// render, the general way: develop every sensor row that a piece needs, resize vertically by adding it
// to the output rows that it contributes to, then along the row.
//
// A piece is a tile of the picture, narrow enough that all of its rows stay in the second-level cache:
// a ring of normalised sensor rows, as many as a group of source rows reads; one developed row
// (demosaiced and, where the resize is in display values, coloured); and the sums of the output rows
// that are unfinished. When the picture is smaller, a source row contributes to 2 or 3 output rows, so
// that there are at most 4 sums, in a ring; when it is taller, an output row is a sum of at most 3
// developed rows, kept in a ring instead. Developed rows are as wide as the sensor and their sums too:
// the resize along the row then happens once for each row of the picture rather than for each of the
// sensor.
//
// With 4 or 8 lanes, a smaller picture is made from kRowGroup source rows at a time, in strips of columns
// whose sums stay in the first-level cache from one row of the group to the next, and what is developed
// goes right into the sums. With 16 lanes the second-level cache keeps up, and rows are developed one by
// one.
#include "cpu/render/develop.h"
#include "cpu/render/finish.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

namespace {

constexpr int64_t kUnfinished = 4;  // sums, or developed rows

// How a developed row ends: as demosaiced, or with matrix, clip and a tone. It is [3][planes][length].
enum class Finish { camera, linear, srgb, gamma, smoothstep, log };

// Where developed colours go: into a row,
struct Stored {
  float* row;

  ISP_MEMBER void put(int64_t at, Vec v) const { store(row + at, v); }
};

// or into the sums of two output rows.
struct Added {
  float *upper, *lower;
  float upper_weight, lower_weight;

  ISP_MEMBER void put(int64_t at, Vec v) const {
    store(upper + at, load(upper + at) + upper_weight * v);
    store(lower + at, load(lower + at) + lower_weight * v);
  }
};

// Develops pixels [begin, end), kLanes at a time and in steps of as many as wait for their tone:
// make(i, v) demosaics into `halves` planes, which lie `half` floats apart in the sink. Its channels are
// `channel_floats` apart; where the matrix has not put them in order, `channel` has it.
template <Finish finish, int halves, class Sink, class Make>
ISP_INLINE void put_pixels(
    int64_t begin, int64_t end, const Colour& colour, const int* channel, int64_t channel_floats,
    int64_t half, const Sink& sink, const Make& make) {
  if constexpr (finish == Finish::camera) {
    for (int64_t i = begin; i < end; i += kLanes) {
      Vec v[halves][3];
      make(i, v);
      for (int h = 0; h < halves; ++h) {
        for (int c = 0; c < 3; ++c) sink.put(channel[c] * channel_floats + h * half + i, v[h][c]);
      }
    }
  } else {
    constexpr Tone tone = static_cast<Tone>(static_cast<int>(finish) - 1);
    Vec waiting[kWaiting<tone>][halves][3];
    for (int64_t from = begin; from < end; from += kWaiting<tone> * kLanes) {
      const int64_t count = at_most(kWaiting<tone>, (end - from + kLanes - 1) / kLanes);
      for (int64_t k = 0; k < count; ++k) {
        Vec v[halves][3];
        make(from + k * kLanes, v);
        for (int h = 0; h < halves; ++h) clipped_colours<tone>(v[h], colour, waiting[k][h]);
      }
      for (int64_t k = 0; k < count; ++k) {
        for (int h = 0; h < halves; ++h) {
          Vec x[3];
          for (int c = 0; c < 3; ++c) x[c] = waiting[k][h][c];
          apply_tone<tone>(x, colour);
          const int64_t at = h * half + from + k * kLanes;
          for (int c = 0; c < 3; ++c) sink.put(c * channel_floats + at, x[c]);
        }
      }
    }
  }
}

// A source row, ready to be developed: its sensor rows are normalised.
struct SourceRow {
  BayerRow bayer;
  const float* plane[4];  // of superpixels
};

// The row and the kRowGroup - 1 before it stay as they are until the next call.
SourceRow source_row(Developer& d, int64_t y) {
  const Render& r = *d.render;
  SourceRow source = {};
  if (r.demosaic != Demosaic::superpixel) {
    source.bayer = bayer_row(d, y);
    return source;
  }
  // One period of 2 x 2 sensor pixels is one pixel.
  float* rows = d.ring + y % kRowGroup * 4 * d.span.length;
  for (int site = 0; site < 4; ++site) {
    const int row = site / 2, column = site % 2;
    float* normalised = rows + row * 2 * d.span.length;
    if (column == 0) {
      normalise_row(r, d.levels, d.sample, r.top + 2 * y + row, d.span, d.widened, normalised);
    }
    source.plane[site ^ (r.pattern[d.sample] & 3)] = normalised + column * d.span.length + kPad;
  }
  return source;
}

// Pairs [begin, end), begin a multiple of kLanes.
template <Demosaic method, bool colour_even, Finish finish, class Sink>
void develop_pairs(
    const Developer& d, const SourceRow& source, int64_t begin, int64_t end, const Sink& to) {
  // Copies, which the stores below cannot change for all that the compiler knows.
  const SensorRows rows = source.bayer.rows;
  const bool blue = source.bayer.blue;
  const Colour colour = d.colour[blue];
  const Sink sink = to;
  const int channel[3] = {blue ? 2 : 0, 1, blue ? 0 : 2};
  const int64_t length = colour_length(d.span.pairs);
  put_pixels<finish, 2>(
      begin, end, colour, channel, 2 * length, length, sink,
      [&](int64_t i, Vec (&v)[2][3]) __attribute__((always_inline)) {
        demosaic_pairs<method, colour_even>(rows, i, v[0], v[1]);
      });
}

template <Finish finish, class Sink>
void develop_superpixels(
    const Developer& d, const SourceRow& source, int64_t begin, int64_t end, const Sink& to) {
  const Colour colour = d.colour[0];
  const Sink sink = to;
  const float* matrix = planes_matrix(*d.render, d.sample);
  const int channel[3] = {0, 1, 2};
  const int64_t length = colour_length(d.span.pairs);
  put_pixels<finish, 1>(
      begin, end, colour, channel, length, 0, sink,
      [&](int64_t i, Vec (&v)[1][3]) __attribute__((always_inline)) {
        superpixel_colours(source.plane, matrix, i, v[0]);
      });
}

template <Finish finish, class Sink>
void develop(
    const Developer& d, const SourceRow& source, int64_t begin, int64_t end, const Sink& sink) {
  const bool colour_even = source.bayer.colour_even;
  switch (d.render->demosaic) {
    case Demosaic::superpixel:
      return develop_superpixels<finish>(d, source, begin, end, sink);
    case Demosaic::bilinear:
      return (colour_even ? develop_pairs<Demosaic::bilinear, true, finish, Sink>
                          : develop_pairs<Demosaic::bilinear, false, finish, Sink>)(
          d, source, begin, end, sink);
    case Demosaic::none:
      return (colour_even ? develop_pairs<Demosaic::none, true, finish, Sink>
                          : develop_pairs<Demosaic::none, false, finish, Sink>)(
          d, source, begin, end, sink);
    default:
      return (colour_even ? develop_pairs<Demosaic::malvar, true, finish, Sink>
                          : develop_pairs<Demosaic::malvar, false, finish, Sink>)(
          d, source, begin, end, sink);
  }
}

template <class Sink>
using Develop = void(const Developer&, const SourceRow&, int64_t, int64_t, const Sink&);

template <class Sink>
Develop<Sink>* developing(const Render& r) {
  if (r.resize_linear) return develop<Finish::camera, Sink>;
  switch (r.tone) {
    case Tone::linear:
      return develop<Finish::linear, Sink>;
    case Tone::srgb:
      return develop<Finish::srgb, Sink>;
    case Tone::gamma:
      return develop<Finish::gamma, Sink>;
    case Tone::log:
      return develop<Finish::log, Sink>;
    default:
      return develop<Finish::smoothstep, Sink>;
  }
}

// `colours` is [3][planes][colour_length]. After the tone curve the teacher's normalisation commutes
// with the resize, whose weights sum to 1, so it is done on the way.
void finish_row(Finisher& f, int64_t row, const float* colours) {
  const Render& r = *f.render;
  const int64_t length = colour_length(f.span.pairs);
  for (int c = 0; c < 3; ++c) {
    const float slope = r.resize_linear ? 1.0f : r.slope[c];
    const float offset = r.resize_linear ? 0.0f : r.offset[c];
    const float* plane = colours + c * f.planes * length;
    if (f.planes == 2) {
      interleave_row(plane, plane + length, f.span.pairs, slope, offset, f.wide[c]);
    } else {
      for (int64_t i = 0; i < length; i += kLanes) {
        store(f.wide[c] + i, load(plane + i) * slope + offset);
      }
    }
  }
  finish_wide(f, row);
}

// What is left of a piece's workspace: rows of [3][planes][colour_length].
struct ColourRows {
  int64_t floats;
  float *single, *ring;  // one, and kUnfinished of them

  ISP_MEMBER float* in_ring(int64_t i) const { return ring + i % kUnfinished * floats; }
};

// The picture is not taller than the source. Rows of a group, no more than there are to an output row,
// have a part in at most 3 output rows whose weights are not zero.
void reduce_in_groups(
    const Render& r, const RenderPiece& piece, Developer& developer, Finisher& finisher,
    const ColourRows& colours) {
  constexpr int64_t kStrip = 128;  // pairs; with the rows that they are developed from, 16 KB
  Develop<Added>* const develop_strip = developing<Added>(r);
  const Taps& taps = r.rows;
  const int64_t group = at_most(kRowGroup, taps.source / taps.target);
  const int64_t end = taps.end[piece.row_end - 1], pairs = developer.span.pairs;
  int64_t unfinished = piece.row_begin;  // the first output row that is
  for (int64_t y = taps.begin[piece.row_begin]; y < end; y += group) {
    const int64_t count = at_most(group, end - y);
    SourceRow source[kRowGroup];
    Added sums[kRowGroup];
    for (int64_t k = 0; k < count; ++k) {
      source[k] = source_row(developer, y + k);
      // Most rows have two sums; where there is one, the other one is of nothing.
      Added& both = sums[k];
      both = {colours.single, colours.single, 0.0f, 0.0f};
      for (int64_t i = unfinished; i < piece.row_end && taps.begin[i] <= y + k; ++i) {
        float* sum = colours.in_ring(i);
        if (taps.begin[i] == y + k) memset(sum, 0, sizeof(float) * colours.floats);
        if (y + k >= taps.end[i]) continue;
        const float weight = taps.weight[i * taps.stride + y + k - taps.begin[i]];
        // Below this it is what rounding left of a zero, and there may be three.
        if (weight < 1e-12f) continue;
        if (both.upper_weight == 0.0f) {
          both.upper = sum, both.upper_weight = weight;
        } else {
          both.lower = sum, both.lower_weight = weight;
        }
      }
    }
    for (int64_t begin = 0; begin < pairs; begin += kStrip) {
      const int64_t strip_end = at_most(begin + kStrip, pairs);
      for (int64_t k = 0; k < count; ++k) {
        develop_strip(developer, source[k], begin, strip_end, sums[k]);
      }
    }
    for (; unfinished < piece.row_end && taps.end[unfinished] <= y + count; ++unfinished) {
      finish_row(finisher, unfinished, colours.in_ring(unfinished));
    }
  }
}

}  // namespace

void render_sizes(const Render& r, int64_t source_columns, int64_t columns, int64_t* workspace) {
  const int64_t pairs = most_pairs(r, source_columns);
  *workspace = developer_floats(r, pairs) + finisher_floats(pairs, columns) +
               (kUnfinished + 1) * 6 * colour_length(pairs);
}

void render(const Render& r, const RenderPiece& piece, float* workspace) {
  Finisher finisher = make_finisher(r, piece, workspace);
  const Span& span = finisher.span;
  workspace += finisher_floats(span.pairs, piece.column_end - piece.column_begin);
  Developer developer = make_developer(r, piece, span, workspace);
  workspace += developer_floats(r, span.pairs);
  ColourRows colours;
  colours.floats = 3 * finisher.planes * colour_length(span.pairs);
  colours.single = workspace, colours.ring = workspace + colours.floats;

  const Taps& taps = r.rows;
  const bool taller = taps.target > taps.source;
  if (kRowGroup > 1 && !taller && !taps.identity) {
    reduce_in_groups(r, piece, developer, finisher, colours);
    return flush(finisher.writer);
  }
  Develop<Stored>* const develop_row = developing<Stored>(r);
  int64_t unfinished = piece.row_begin;  // the first output row that is
  for (int64_t y = taps.begin[piece.row_begin]; y < taps.end[piece.row_end - 1]; ++y) {
    float* developed = taller ? colours.in_ring(y) : colours.single;
    develop_row(developer, source_row(developer, y), 0, span.pairs, {developed});
    if (taps.identity) {
      finish_row(finisher, y, developed);
    } else if (taller) {
      for (; unfinished < piece.row_end && taps.end[unfinished] == y + 1; ++unfinished) {
        for (int64_t k = taps.begin[unfinished]; k <= y; ++k) {
          const float weight = taps.weight[unfinished * taps.stride + k - taps.begin[unfinished]];
          add_row(colours.in_ring(k), weight, k == taps.begin[unfinished], colours.floats,
                  colours.single);
        }
        finish_row(finisher, unfinished, colours.single);
      }
    } else {
      for (int64_t i = unfinished; i < piece.row_end && taps.begin[i] <= y; ++i) {
        const float weight = taps.weight[i * taps.stride + y - taps.begin[i]];
        add_row(developed, weight, y == taps.begin[i], colours.floats, colours.in_ring(i));
      }
      for (; unfinished < piece.row_end && taps.end[unfinished] == y + 1; ++unfinished) {
        finish_row(finisher, unfinished, colours.in_ring(unfinished));
      }
    }
  }
  flush(finisher.writer);
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
