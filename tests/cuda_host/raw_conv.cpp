// raw_conv's CUDA kernels as a Python module that runs them on the CPU; see csrc/cuda/host.h.
#include <pybind11/pybind11.h>

#include "cuda/raw_conv_forward.cu"

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

}  // namespace

PYBIND11_MODULE(raw_conv_host, m) { m.def("forward", &forward); }
