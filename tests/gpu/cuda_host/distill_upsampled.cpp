// The CUDA kernels of upsampled_distill_loss as a Python module that runs them on the CPU; see
// csrc/cuda/host.h, which says what that can show and what it cannot.
#include "cuda/distill_loss/upsampled.h"
#include "distill_call_of.h"

namespace {

std::array<int64_t, 2> pair_of(const py::dict& d, const char* name) {
  const py::tuple t = d[name].cast<py::tuple>();
  return {t[0].cast<int64_t>(), t[1].cast<int64_t>()};
}

UpsampledLoss upsampled_of(const py::dict& d, int objective) {
  UpsampledLoss up{};
  up.call = call_of(d);
  const auto [height, width] = pair_of(d, "size");
  up.batch = static_cast<int>(up.call.size_n);
  up.height = static_cast<int>(height), up.width = static_cast<int>(width);
  up.call.rows_per_sample = height * width;
  const auto s = pair_of(d, "student_size"), t = pair_of(d, "teacher_size");
  if (!plan_upsampled(up, {s[0], s[1]}, {t[0], t[1]}, d["align_corners"].cast<bool>(),
                      static_cast<Objective>(objective))) {
    throw std::runtime_error("no tile fits");
  }
  return up;
}

// Loss, agreements, and blocks of both kernels.
py::tuple run(const py::dict& d, int objective, unsigned seed) {
  UpsampledLoss up = upsampled_of(d, objective);
  const int64_t blocks = pixel_blocks(up);
  const std::unique_ptr<double[]> losses(new double[blocks]);
  const std::unique_ptr<int64_t[]> agreements(new int64_t[blocks]);
  up.call.losses = losses.get(), up.call.agreements = agreements.get();
  const int64_t pixels = int64_t(up.batch) * up.height * up.width;
  std::unique_ptr<float[]> numbers;
  if (up.call.gradient.data != nullptr) numbers.reset(new float[pixels * up.words]);
  up.numbers = numbers.get();
  launch_upsampled(static_cast<Objective>(objective), up,
                   [&](auto* kernel, int64_t count, int threads, int bytes) {
                     host::run_grid(static_cast<unsigned>(count), 1, threads, bytes, seed,
                                    [&] { kernel(up); });
                   });
  double loss = 0;
  int64_t agreed = 0;
  for (int64_t i = 0; i < blocks; ++i) loss += losses[i], agreed += agreements[i];
  return py::make_tuple(loss, agreed, blocks, cell_blocks(up));
}

// How a call is shared out, or None where it does not fit.
py::object plan(const py::dict& d, int objective) {
  try {
    const UpsampledLoss up = upsampled_of(d, objective);
    py::dict result;
    result["pixels"] = py::make_tuple(up.pixels.width, up.pixels.classes, up.pixels.bytes);
    result["cells"] = py::make_tuple(up.cells.width, up.cells.height, up.cells.lanes,
                                     up.cells.threads, up.cells.bytes);
    return result;
  } catch (const std::runtime_error&) {
    return py::none();
  }
}

}  // namespace

PYBIND11_MODULE(distill_upsampled_host, module) {
  module.def("run", &run);
  module.def("plan", &plan);
  offer_memory(module);
}
