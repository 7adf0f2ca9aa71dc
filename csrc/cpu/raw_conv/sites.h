// The per-pixel part of raw_conv: the four sites of a period to normalised, mixed and curved planes.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/raw_conv/call.h"
#include "cpu/simd.h"

namespace isp_distill {
namespace ISP_DISTILL_ISA {

constexpr float kDarkest = 1e-8f;             // below it the curves sqrt and gamma are flat
constexpr float kMu = 255.0f;                 // of the log curve, log(1 + mu x) / log(1 + mu)
constexpr float kLog2Scale = 0.125f;          // 1 / log2(1 + mu)

// The settings of one sample, in the order of the sites of a period (2 * row + column).
struct Camera {
  int plane[4];  // of each site
  Vec black[4], scale[4];
  float mix[4][4];  // [plane out][site]
  float low, high;
  float gamma;
};

ISP_INLINE Camera camera_of(const RawConv& c, int64_t sample) {
  Camera camera;
  for (int site = 0; site < 4; ++site) {
    const int plane = site ^ (int)(c.pattern[sample] & 3);
    camera.plane[site] = plane;
    camera.black[site] = broadcast(c.black[4 * sample + plane]);
    camera.scale[site] = broadcast(c.scale[4 * sample + plane]);
    for (int out = 0; out < 4; ++out) {
      camera.mix[out][site] = c.mix ? c.mix[16 * sample + 4 * out + plane] : 0.0f;
    }
  }
  camera.low = c.clip ? 0.0f : -__builtin_inff();
  camera.high = c.clip ? 1.0f : __builtin_inff();
  camera.gamma = c.gamma;
  return camera;
}

// kLanes periods from two mosaic rows.
template <Element type>
ISP_INLINE void load_sites(const void* row0, const void* row1, int64_t period, Vec* site) {
  load_pairs<type>(row0, period, &site[0], &site[1]);
  load_pairs<type>(row1, period, &site[2], &site[3]);
}

// 2 * kLanes periods: site[0] the even ones, site[1] the odd ones.
template <Element type>
ISP_INLINE void load_sites_in_two(
    const void* row0, const void* row1, int64_t period, Vec (*site)[4]) {
  if constexpr (type == Element::float32) {
    Vec a[4], b[4];
    load_sites<type>(row0, row1, period, a);
    load_sites<type>(row0, row1, period + kLanes, b);
    for (int s = 0; s < 4; ++s) {
      site[0][s] = even(a[s], b[s]);
      site[1][s] = odd(a[s], b[s]);
    }
  } else {
    for (int row = 0; row < 2; ++row) {
      const uint16_t* p = static_cast<const uint16_t*>(row ? row1 : row0) + 2 * period;
      const Vec a = (Vec)load_words(p), b = (Vec)load_words(p + 2 * kLanes);
      split_pair<type>((Word)even(a, b), &site[0][2 * row], &site[0][2 * row + 1]);
      split_pair<type>((Word)odd(a, b), &site[1][2 * row], &site[1][2 * row + 1]);
    }
  }
}

// The first `count` elements, zeros behind them; and back.
ISP_INLINE Vec load_first(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vec x = {};
  memcpy(&x, from, 4 * at_least(count, 0));
  return x;
}

ISP_INLINE void store_first(float* to, Vec x, int64_t count) {
  if (count >= kLanes) {
    store(to, x);
  } else {
    memcpy(to, &x, 4 * at_least(count, 0));
  }
}

// Two mosaic rows, read some periods at a time; those beyond `left` are zeros, and are not read.
template <Element type>
struct Periods {
  const void *row0, *row1;
  alignas(64) char tail[2][4 * kLanes * 4];

  Periods(const void* upper, const void* lower) : row0(upper), row1(lower) {}

  ISP_MEMBER void copy_tail(int64_t period, int64_t left) {
    constexpr int kBytes = type == Element::float32 ? 4 : 2;
    memset(tail, 0, sizeof(tail));
    memcpy(tail[0], static_cast<const char*>(row0) + 2 * kBytes * period, 2 * kBytes * left);
    memcpy(tail[1], static_cast<const char*>(row1) + 2 * kBytes * period, 2 * kBytes * left);
  }

  ISP_MEMBER void load(int64_t period, int64_t left, Vec* site) {
    if (left >= kLanes) return load_sites<type>(row0, row1, period, site);
    copy_tail(period, left);
    load_sites<type>(tail[0], tail[1], 0, site);
  }

  // site[0] the even ones, site[1] the odd ones.
  ISP_MEMBER void load_in_two(int64_t period, int64_t left, Vec (*site)[4]) {
    if (left >= 2 * kLanes) return load_sites_in_two<type>(row0, row1, period, site);
    copy_tail(period, left);
    load_sites_in_two<type>(tail[0], tail[1], 0, site);
  }
};

// The curve of four planes, in place, and its slope where `slope` is not null (zero where the curve is
// flat); log2_of_x: of the gamma curve alone. NaN stays NaN, in both: log2 and exp2 do not keep it, so
// that it is put back.
template <Curve curve>
ISP_INLINE void apply_curve(Vec (&x)[4], float gamma, Vec* slope, Vec (&log2_of_x)[4]) {
  const Vec none = {};
  if constexpr (curve == Curve::linear) {
    for (int k = 0; slope && k < 4; ++k) slope[k] = none + 1.0f;
  }
  if constexpr (curve == Curve::sqrt) {
    for (int k = 0; k < 4; ++k) {
      const Vec z = square_root(max(broadcast(kDarkest), x[k]));
      if (slope) slope[k] = x[k] < kDarkest ? none : 0.5f / z;
      x[k] = z;
    }
  }
  if constexpr (curve == Curve::log) {
    Vec y[4], logarithm[4];
    for (int k = 0; k < 4; ++k) {
      logarithm[k] = y[k] = 1.0f + kMu * max(none, x[k]);
      if (slope) slope[k] = x[k] < 0.0f ? none : kMu * kLog2Scale * 1.44269504f / y[k];
    }
    log2<true>(logarithm);
    for (int k = 0; k < 4; ++k) {
      x[k] = kLog2Scale * (y[k] < __builtin_inff() ? logarithm[k] : y[k]);
    }
  }
  if constexpr (curve == Curve::gamma) {
    // One comparison for both: no x is below the limit where gamma is NaN.
    const float limit = gamma == gamma ? __builtin_inff() : 0.0f;
    Vec bright[4], power[4];
    for (int k = 0; k < 4; ++k) log2_of_x[k] = bright[k] = max(broadcast(kDarkest), x[k]);
    log2<true>(log2_of_x);
    for (int k = 0; k < 4; ++k) power[k] = gamma * log2_of_x[k];
    exp2<true>(power);
    for (int k = 0; k < 4; ++k) {
      const Vec z = bright[k] < limit ? power[k] : gamma * bright[k];
      if (slope) slope[k] = x[k] < kDarkest ? none : gamma * z / bright[k];
      x[k] = z;
    }
  }
}

// NaN stays NaN.
ISP_INLINE Vec clamp(Vec x, const Camera& camera) {
  return min(broadcast(camera.high), max(broadcast(camera.low), x));
}

// What becomes of the four sites of kLanes periods: planes[k] is the k-th of them, and belongs to the
// plane that the function returns.
//
// With `keep`, also what the way back through the colours needs (see colour.h): the slope from
// the mixed planes to the result, zero where the second clamp cut it off; and for the gamma curve the
// derivative by gamma, in units of log(2).
template <bool mixed, Curve curve, bool keep>
ISP_INLINE void develop(
    const Camera& camera, const Vec* raw, Vec (&planes)[4], Vec* slopes, Vec* by_gamma) {
  Vec site[4];
  for (int s = 0; s < 4; ++s) {
    site[s] = clamp((raw[s] - camera.black[s]) * camera.scale[s], camera);
  }
  Vec x[4], unclamped[4], log2_of_x[4];
  for (int k = 0; k < 4; ++k) {
    x[k] = unclamped[k] = site[k];
    if constexpr (mixed) {
      const float* m = camera.mix[k];
      unclamped[k] = m[0] * site[0] + m[1] * site[1] + m[2] * site[2] + m[3] * site[3];
      x[k] = clamp(unclamped[k], camera);
    }
    planes[k] = x[k];
  }
  apply_curve<curve>(planes, camera.gamma, keep ? slopes : nullptr, log2_of_x);
  for (int k = 0; keep && k < 4; ++k) {
    // As in the reference, the clamp let through what lies exactly on a bound, and NaN.
    if constexpr (mixed) slopes[k] = unless_different(unclamped[k], x[k], slopes[k]);
    if constexpr (curve == Curve::gamma) by_gamma[k] = planes[k] * log2_of_x[k];
  }
}

template <bool mixed>
ISP_INLINE int plane_of(const Camera& camera, int k) {
  return mixed ? k : camera.plane[k];
}

// Converts `count` periods into out[plane * line + i]; writes up to kLanes - 1 more. With `keep`, also
// into kept: [0][plane][i] the slope, [1][plane][i] the derivative by gamma.
template <Element type, bool mixed, Curve curve, bool keep>
static void convert_sites(
    const void* row0, const void* row1, int64_t count, const Camera& of_sample, float* out,
    float* kept, int64_t line) {
  // A copy, which the stores below cannot change for all that the compiler knows.
  const Camera camera = of_sample;
  Periods<type> periods(row0, row1);
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec site[4], planes[4], slopes[4], by_gamma[4];
    periods.load(i, count - i, site);
    develop<mixed, curve, keep>(camera, site, planes, slopes, by_gamma);
    for (int k = 0; k < 4; ++k) {
      const int plane = plane_of<mixed>(camera, k);
      store(out + plane * line + i, planes[k]);
      if constexpr (keep) {
        store(kept + plane * line + i, slopes[k]);
        if constexpr (curve == Curve::gamma) store(kept + (4 + plane) * line + i, by_gamma[k]);
      }
    }
  }
}

// Where the two rows are into which every other period goes: of plane k at first + k * line and
// second + k * line.
struct InTwo {
  float *first, *second;
  int64_t line;
};

// As convert_sites, but period 2 i goes to first[plane * line + i], period 2 i + 1 to second[plane * line
// + i]; writes no more than that. The periods are told apart while the two sites of a row are still one
// word, so that this costs a shuffle for two sites. What is kept lies likewise, the derivative by gamma
// four planes on.
template <Element type, bool mixed, Curve curve, bool keep>
static void convert_sites_in_two(
    const void* row0, const void* row1, int64_t count, const Camera& of_sample, InTwo out, InTwo kept) {
  const Camera camera = of_sample;
  Periods<type> periods(row0, row1);
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    const int64_t left = at_most(count - i, 2 * kLanes);
    Vec site[2][4], planes[4], slopes[4], by_gamma[4];
    periods.load_in_two(i, left, site);
    for (int half = 0; half < 2; ++half) {
      develop<mixed, curve, keep>(camera, site[half], planes, slopes, by_gamma);
      float* to = (half ? out.second : out.first) + i / 2;
      float* to_kept = keep ? (half ? kept.second : kept.first) + i / 2 : nullptr;
      const int64_t here = (left + 1 - half) / 2;
      for (int k = 0; k < 4; ++k) {
        const int plane = plane_of<mixed>(camera, k);
        store_first(to + plane * out.line, planes[k], here);
        if constexpr (keep) {
          store_first(to_kept + plane * kept.line, slopes[k], here);
          if constexpr (curve == Curve::gamma) {
            store_first(to_kept + (4 + plane) * kept.line, by_gamma[k], here);
          }
        }
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
