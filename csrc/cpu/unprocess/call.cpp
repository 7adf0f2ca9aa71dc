// The operators isp_distill_cpu::unprocess and expose: check the arguments, cut the mosaics into pieces,
// and run the kernels of this processor's instruction set on torch's threads.
#include "cpu/unprocess/call.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(unprocess, (const Unprocess&, const PeriodRows&))
ISP_DISTILL_DECLARE_KERNEL(expose, (const Expose&, const PeriodRows&))

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The sensor that `out` is written for; `scale` keeps what is derived alive.
Sensor sensor_of(
    const Tensor& pattern, const Tensor& black, const Tensor& white, const std::optional<Tensor>& shot,
    const std::optional<Tensor>& read, int64_t seed, const Tensor& out, std::vector<float>* scale) {
  Sensor s = {};
  STD_TORCH_CHECK(
      out.is_cpu() && out.dim() == 3 && out.scalar_type() == ScalarType::UInt16 && out.is_contiguous(),
      "out must be a contiguous uint16 [N, H, W] on the CPU");
  const int64_t batch = out.size(0);
  s.height = out.size(1);
  s.width = out.size(2);
  STD_TORCH_CHECK(s.height % 2 == 0 && s.width % 2 == 0, "odd mosaic");
  s.out = static_cast<uint16_t*>(out.data_ptr());
  STD_TORCH_CHECK(
      pattern.is_cpu() && pattern.scalar_type() == ScalarType::Long && pattern.is_contiguous() &&
          pattern.numel() == batch,
      "pattern must be int64 [N]");
  s.pattern = static_cast<const int64_t*>(pattern.data_ptr());
  s.black = floats(black, {batch, 4}, "black");
  s.white = floats(white, {batch}, "white");
  s.shot = floats(shot, {batch}, "shot");
  s.read = floats(read, {batch}, "read");
  STD_TORCH_CHECK(!s.shot == !s.read, "shot and read noise go together");
  s.seed = static_cast<uint64_t>(seed);
  scale->resize(4 * batch);
  for (int64_t i = 0; i < 4 * batch; ++i) (*scale)[i] = s.white[i / 4] - s.black[i];
  s.scale = scale->data();
  return s;
}

// Pieces of about as many sensor sites: large enough that a thread's setting up counts nothing.
constexpr int64_t kPieceSites = 1 << 16;

template <class Call, class Kernel>
void run(const Call& call, int64_t batch, Kernel* kernel) {
  const int64_t periods = call.sensor.height / 2;
  if (batch == 0 || periods == 0 || call.sensor.width == 0) return;
  const int64_t each = std::max<int64_t>(kPieceSites / (2 * call.sensor.width), 1);
  const int64_t pieces = (periods + each - 1) / each;
  for_each(batch * pieces, 0, [&](int64_t i, float*) {
    const int64_t begin = i % pieces * each;
    kernel(call, PeriodRows{i / pieces, begin, std::min(begin + each, periods)});
  });
}

// Memory that is not yet in the caches is handed out page by page; below this it does not matter.
constexpr int64_t kLargeBytes = 8 << 20;

void unprocess_picture(
    Tensor rgb, Tensor rgb_to_camera, Tensor gains, Tensor pattern, Tensor black, Tensor white,
    std::optional<Tensor> shot, std::optional<Tensor> read, int64_t seed, Tensor out) {
  std::vector<float> scale;
  Unprocess u = {};
  u.sensor = sensor_of(pattern, black, white, shot, read, seed, out, &scale);
  const int64_t batch = out.size(0);
  STD_TORCH_CHECK(
      rgb.is_cpu() && rgb.dim() == 4 && rgb.size(0) == batch && rgb.size(1) == 3 &&
          rgb.size(2) == u.sensor.height && rgb.size(3) == u.sensor.width,
      "rgb must be [N, 3, H, W] on the CPU");
  u.rgb = rgb.data_ptr();
  u.type = element_of(rgb, "rgb");
  STD_TORCH_CHECK(
      u.type == Element::uint8 || u.type == Element::float32 || u.type == Element::float16 ||
          u.type == Element::bfloat16,
      "rgb must be uint8, float32, float16 or bfloat16");
  u.sample = rgb.stride(0);
  u.channel = rgb.stride(1);
  u.row = rgb.stride(2);
  u.column = rgb.stride(3);
  u.rgb_to_camera = floats(rgb_to_camera, {batch, 3, 3}, "rgb_to_camera");
  u.gains = floats(gains, {batch, 3}, "gains");
  if (2 * out.numel() > kLargeBytes) advise_huge_pages(out);
  run(u, batch, ISP_DISTILL_KERNEL(unprocess));
}

void expose_mosaic(
    Tensor mosaic, Tensor factor, Tensor shot, Tensor read, Tensor pattern, Tensor black, Tensor white,
    int64_t seed, Tensor out) {
  std::vector<float> scale;
  Expose e = {};
  e.sensor = sensor_of(pattern, black, white, shot, read, seed, out, &scale);
  const int64_t batch = out.size(0);
  STD_TORCH_CHECK(
      mosaic.is_cpu() && mosaic.dim() == 3 && mosaic.size(0) == batch &&
          mosaic.size(1) == e.sensor.height && mosaic.size(2) == e.sensor.width,
      "mosaic must be [N, H, W] on the CPU");
  e.mosaic = mosaic.data_ptr();
  e.type = element_of(mosaic, "mosaic");
  e.sample = mosaic.stride(0);
  e.row = mosaic.stride(1);
  e.column = mosaic.stride(2);
  e.factor = floats(factor, {batch}, "factor");
  if (2 * out.numel() > kLargeBytes) advise_huge_pages(out);
  run(e, batch, ISP_DISTILL_KERNEL(expose));
}

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, m) {
  m.def(
      "unprocess(Tensor rgb, Tensor rgb_to_camera, Tensor gains, Tensor pattern, Tensor black, "
      "Tensor white, Tensor? shot, Tensor? read, int seed, Tensor(a!) out) -> ()");
  m.def(
      "expose(Tensor mosaic, Tensor factor, Tensor shot, Tensor read, Tensor pattern, Tensor black, "
      "Tensor white, int seed, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, m) {
  m.impl("unprocess", TORCH_BOX(&unprocess_picture));
  m.impl("expose", TORCH_BOX(&expose_mosaic));
}

}  // namespace
}  // namespace isp_distill
