// raw_conv's CUDA kernels as a Python module that runs them on the CPU; see csrc/cuda/host.h.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/raw_conv/backward.cu"
#include "cuda/raw_conv/forward.cu"

namespace py = pybind11;
using namespace isp_distill::cuda;

namespace {

template <class T>
T pointer(const py::dict& d, const char* name) {
  return reinterpret_cast<T>(d[name].cast<uintptr_t>());
}

RawConvCall call_of(const py::dict& d) {
  RawConvCall c = {};
  c.mosaic = pointer<const void*>(d, "mosaic");
  c.mosaic_sample = d["mosaic_sample"].cast<int64_t>();
  c.mosaic_row = d["mosaic_row"].cast<int64_t>();
  c.pattern = pointer<const int64_t*>(d, "pattern");
  c.black = pointer<const float*>(d, "black");
  c.scale = pointer<const float*>(d, "scale");
  c.linearise = pointer<const float*>(d, "linearise");
  c.table_step = d["table_step"].cast<int64_t>();
  c.last_code = d["last_code"].cast<int>();
  c.mix = pointer<const float*>(d, "mix");
  c.gamma = pointer<const float*>(d, "gamma");
  c.padding_value = pointer<const float*>(d, "padding_value");
  c.weight = pointer<const float*>(d, "weight");
  c.bias = pointer<const float*>(d, "bias");
  c.out = pointer<void*>(d, "out");
  c.grad = pointer<const void*>(d, "grad");
  int* const numbers[] = {&c.batch, &c.height, &c.width, &c.channels, &c.kernel, &c.stride,
                          &c.left, &c.top, &c.out_height, &c.out_width};
  const char* const names[] = {"batch", "height", "width", "channels", "kernel", "stride",
                               "left", "top", "out_height", "out_width"};
  for (int i = 0; i < 10; ++i) *numbers[i] = d[names[i]].cast<int>();
  c.sensor = static_cast<Sensor>(d["sensor"].cast<int>());
  c.packing = static_cast<Packing>(d["packing"].cast<int>());
  c.curve = static_cast<Curve>(d["curve"].cast<int>());
  c.activation = static_cast<Activation>(d["activation"].cast<int>());
  c.clip = d["clip"].cast<bool>();
  c.channels_last = d["channels_last"].cast<bool>();
  plan_tiles(c, d["bytes"].cast<int>());
  return c;
}

// False where no tile fits.
bool forward(const py::dict& d, unsigned blocks, unsigned seed) {
  RawConvCall c = call_of(d);
  const int bytes = d["bytes"].cast<int>();
  const bool bfloat = d["bfloat16"].cast<bool>();
  Layout l;
  if (!plan_forward(c, bytes, l)) return false;
  const auto kernel = bytes == 4 ? raw_conv_forward_float32
                      : bfloat   ? raw_conv_forward_bfloat16
                                 : raw_conv_forward_float16;
  const unsigned groups = (c.channels + c.group - 1) / c.group;
  host::run_grid(blocks, groups, kThreads, l.total, seed, [&] { kernel(c, l); });
  return true;
}

bool backward(const py::dict& d, unsigned blocks, unsigned seed) {
  RawConvCall c = call_of(d);
  const int bytes = d["bytes"].cast<int>();
  const bool bfloat = d["bfloat16"].cast<bool>();
  Layout l;
  if (!plan_backward(c, bytes, l)) return false;
  const auto kernel = bytes == 4 ? raw_conv_backward_float32
                      : bfloat   ? raw_conv_backward_bfloat16
                                 : raw_conv_backward_float16;
  blocks = static_cast<unsigned>(std::min<int64_t>(blocks, c.tiles));
  const int places = static_cast<int>(blocks) * parts_of_block(c);
  const int weights = c.channels * 4 * c.kernel * c.kernel;
  // What nobody writes is NaN.
  std::vector<float> weight_sums(size_t(places) * weights, NAN);
  std::vector<float> bias_sums(size_t(places) * c.channels, NAN);
  c.weight_sums = weight_sums.data(), c.bias_sums = bias_sums.data();
  const unsigned groups = (c.channels + c.group - 1) / c.group;
  host::run_grid(blocks, groups, kThreads, l.total, seed, [&] { kernel(c, l); });
  const auto add_up = [&](const float* sums, float* out, int size) {
    host::run_grid((size + 31) / 32, 1, kThreads, 4 * kThreads, seed,
                   [&] { raw_conv_add_up(sums, out, places, size); });
  };
  add_up(c.weight_sums, pointer<float*>(d, "of_weight"), weights);
  add_up(c.bias_sums, pointer<float*>(d, "of_bias"), c.channels);
  return true;
}

// Bytes of shared memory that either pass needs with 32 channels.
int shared_bytes(int kernel, int stride, int sensor, int bytes, int packing) {
  RawConvCall c = {};
  c.kernel = kernel, c.stride = stride, c.sensor = static_cast<Sensor>(sensor), c.group = 32;
  c.packing = static_cast<Packing>(packing);
  return std::max(forward_layout(c, bytes).total, backward_layout(c, bytes).total);
}

}  // namespace

PYBIND11_MODULE(raw_conv_host, m) { 
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("shared_bytes", &shared_bytes);
}
