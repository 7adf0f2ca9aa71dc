// The per-pixel part of raw_conv: the four sites of a period to normalised, mixed and curved planes.
#pragma once

#include "cpu/mosaic.h"
#include "cpu/raw_conv.h"
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

// The curve, and its slope where `slope` is not null (zero where the curve is flat).
template <Curve curve>
ISP_INLINE Vec apply_curve(Vec x, float gamma, Vec* slope, Vec* log2_of_x) {
  const Vec none = {};
  if constexpr (curve == Curve::sqrt) {
    const Vec z = square_root(max(x, broadcast(kDarkest)));
    if (slope) *slope = x >= kDarkest ? 0.5f / z : none;
    return z;
  }
  if constexpr (curve == Curve::log) {
    const Vec y = 1.0f + kMu * max(x, none);
    if (slope) *slope = x >= 0.0f ? kMu * kLog2Scale * 1.44269504f / y : none;
    return kLog2Scale * log2(y);
  }
  if constexpr (curve == Curve::gamma) {
    const Vec bright = max(x, broadcast(kDarkest));
    *log2_of_x = log2(bright);
    const Vec z = exp2(gamma * *log2_of_x);
    if (slope) *slope = x >= kDarkest ? gamma * z / bright : none;
    return z;
  }
  if (slope) *slope = none + 1.0f;
  return x;
}

ISP_INLINE Vec clamp(Vec x, const Camera& camera) {
  return min(max(x, broadcast(camera.low)), broadcast(camera.high));
}

// Converts `count` periods into out[plane * line + i]; writes up to kLanes - 1 more.
//
// With `keep`, also into kept what the way back through the colours needs (see raw_conv_colour.h):
// [0][plane][i], the slope from the mixed planes to the result, zero where the second clamp cut it
// off; [1][plane][i], for the gamma curve, the derivative by gamma, in units of log(2).
template <Element type, bool mixed, Curve curve, bool keep>
static void convert_sites(
    const void* row0, const void* row1, int64_t count, const Camera& of_sample, float* out,
    float* kept, int64_t line) {
  constexpr int kBytes = type == Element::float32 ? 4 : 2;
  // A copy, which the stores below cannot change for all that the compiler knows.
  const Camera camera = of_sample;
  alignas(64) char tail[2][2 * kLanes * 4];
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec site[4];
    if (count - i >= kLanes) {
      load_sites<type>(row0, row1, i, site);
    } else {
      memset(tail, 0, sizeof(tail));
      memcpy(tail[0], static_cast<const char*>(row0) + 2 * kBytes * i, 2 * kBytes * (count - i));
      memcpy(tail[1], static_cast<const char*>(row1) + 2 * kBytes * i, 2 * kBytes * (count - i));
      load_sites<type>(tail[0], tail[1], 0, site);
    }
    for (int s = 0; s < 4; ++s) {
      site[s] = clamp((site[s] - camera.black[s]) * camera.scale[s], camera);
    }
    for (int k = 0; k < 4; ++k) {
      Vec x = site[k], unclamped = x;
      int plane = camera.plane[k];
      if constexpr (mixed) {
        const float* m = camera.mix[k];
        unclamped = m[0] * site[0] + m[1] * site[1] + m[2] * site[2] + m[3] * site[3];
        x = clamp(unclamped, camera);
        plane = k;
      }
      Vec slope, log2_of_x;
      const Vec z = apply_curve<curve>(x, camera.gamma, keep ? &slope : nullptr, &log2_of_x);
      store(out + plane * line + i, z);
      if constexpr (keep) {
        // As in torch, a value that lies exactly on a bound was not cut off.
        if constexpr (mixed) slope = unclamped == x ? slope : Vec{};
        store(kept + plane * line + i, slope);
        if constexpr (curve == Curve::gamma) store(kept + (4 + plane) * line + i, z * log2_of_x);
      }
    }
  }
}

}  // namespace ISP_DISTILL_ISA
}  // namespace isp_distill
