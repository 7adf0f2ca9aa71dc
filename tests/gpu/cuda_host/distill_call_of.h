// What the host modules of the distillation loss have in common: a call made of a Python dictionary,
// and memory for it.
#pragma once

#include <pybind11/pybind11.h>

#include "cuda/distill_loss/call.h"

namespace py = pybind11;
using namespace isp_distill;
using namespace isp_distill::cuda;

namespace {

Logits logits_of(const py::dict& d, const char* name) {
  const py::tuple t = d[name].cast<py::tuple>();
  return {reinterpret_cast<char*>(t[0].cast<uintptr_t>()), static_cast<Dtype>(t[1].cast<int>()),
          t[2].cast<int64_t>(), t[3].cast<int64_t>(), t[4].cast<int64_t>(), t[5].cast<int64_t>()};
}

LossCall call_of(const py::dict& d) {
  LossCall call{};
  const auto address = [&](const char* name) { return d[name].cast<uintptr_t>(); };
  call.student = logits_of(d, "student"), call.teacher = logits_of(d, "teacher");
  call.gradient = logits_of(d, "gradient");
  const py::tuple sizes = d["sizes"].cast<py::tuple>();
  call.size_n = sizes[0].cast<int64_t>(), call.classes = sizes[1].cast<int64_t>();
  call.size_a = sizes[2].cast<int64_t>(), call.size_b = sizes[3].cast<int64_t>();
  call.rows_per_sample = call.size_a * call.size_b;
  call.labels = reinterpret_cast<const int64_t*>(address("labels"));
  call.mask = reinterpret_cast<const uint8_t*>(address("mask"));
  call.weight = reinterpret_cast<const float*>(address("weight"));
  call.factors = reinterpret_cast<const double*>(address("factors"));
  call.row_losses = reinterpret_cast<float*>(address("row_losses"));
  call.cross_entropy = d["cross_entropy"].cast<bool>();
  call.ignore_index = d["ignore_index"].cast<int64_t>();
  const double temperature = d["temperature"].cast<double>();
  call.k = static_cast<float>(1.4426950408889634 / temperature);
  call.temperature = static_cast<float>(temperature), call.beta = d["beta"].cast<float>();
  call.smoothing = d["smoothing"].cast<float>();
  call.smoothing_of_class = call.smoothing / static_cast<float>(call.classes);
  call.gradient_scale = d["gradient_scale"].cast<float>();
  return call;
}

// A block of the heap of exactly this size, so that the address sanitiser sees every access beyond it.
uintptr_t allocate(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 16, bytes)) throw std::bad_alloc();
  return reinterpret_cast<uintptr_t>(block);
}
void release(uintptr_t block) { free(reinterpret_cast<void*>(block)); }
void copy(uintptr_t to, uintptr_t from, size_t bytes) {
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
}

void offer_memory(py::module_& module) {
  module.def("allocate", &allocate);
  module.def("release", &release);
  module.def("copy", &copy);
}

}  // namespace
