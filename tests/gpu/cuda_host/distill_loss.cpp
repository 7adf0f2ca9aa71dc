// distill_loss's CUDA kernels as a Python module that runs them on the CPU; see csrc/cuda/host.h, which
// says what that can show and what it cannot.
#include "cuda/distill_loss/kernels.h"
#include "distill_call_of.h"

namespace {

// Loss, agreements, and how the call was computed.
py::tuple run(const py::dict& d, int objective, unsigned seed) {
  LossCall call = call_of(d);
  const Shape shape = shape_of(call);
  call.aligned = aligned(call, shape);
  const int64_t blocks = blocks_of(call, shape);
  const std::unique_ptr<double[]> losses(new double[blocks]);
  const std::unique_ptr<int64_t[]> agreements(new int64_t[blocks]);
  call.losses = losses.get(), call.agreements = agreements.get();
  launch_kernel(static_cast<Objective>(objective), shape, [&](auto* kernel) {
    host::run_grid(static_cast<unsigned>(blocks), 1, kLossThreads, kLossShared, seed,
                   [&] { kernel(call); });
  });
  double loss = 0;
  int64_t agreed = 0;
  for (int64_t i = 0; i < blocks; ++i) loss += losses[i], agreed += agreements[i];
  return py::make_tuple(loss, agreed, static_cast<int>(shape), call.aligned);
}

}  // namespace

PYBIND11_MODULE(distill_loss_host, module) {
  module.def("run", &run);
  offer_memory(module);
}
