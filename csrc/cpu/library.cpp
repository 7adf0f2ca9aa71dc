// The Python module isp_distill._C. Loading it registers the operators of the other files; the module
// itself only tells which instruction set the kernels use.
#include <Python.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"

namespace isp_distill {

namespace {

bool processor_has(InstructionSet set) {
#if defined(__x86_64__)
  // Both checks of the compiler's runtime cover the operating system's support as well.
  switch (set) {
    case InstructionSet::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("fma");
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return set == InstructionSet::generic;
#endif
}

InstructionSet best() {
  for (InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2}) {
    if (processor_has(set)) return set;
  }
  return InstructionSet::generic;
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx2:
      return "avx2";
    default:
      return "generic";
  }
}

InstructionSet instruction_set() {
  static const InstructionSet of_processor = best();
  const char* wanted = std::getenv("ISP_DISTILL_CPU");
  if (wanted == nullptr || *wanted == '\0') return of_processor;
  for (InstructionSet set : {InstructionSet::generic, InstructionSet::avx2, InstructionSet::avx512}) {
    if (std::strcmp(wanted, name_of(set)) != 0) continue;
    if (processor_has(set)) return set;
    throw std::runtime_error(std::string("ISP_DISTILL_CPU=") + wanted +
                             ": this processor does not have it");
  }
  throw std::runtime_error(std::string("ISP_DISTILL_CPU=") + wanted +
                           ": expected generic, avx2 or avx512");
}

}  // namespace isp_distill

namespace {

PyObject* instruction_set(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(isp_distill::name_of(isp_distill::instruction_set()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* instruction_sets(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  if (names == nullptr) return nullptr;
  using isp_distill::InstructionSet;
  for (InstructionSet set : {InstructionSet::generic, InstructionSet::avx2, InstructionSet::avx512}) {
    if (!isp_distill::processor_has(set)) continue;
    PyObject* name = PyUnicode_FromString(isp_distill::name_of(set));
    const int failed = name == nullptr ? -1 : PyList_Append(names, name);
    Py_XDECREF(name);
    if (failed) {
      Py_DECREF(names);
      return nullptr;
    }
  }
  return names;
}

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS,
     "The instruction set in use: generic, avx2 or avx512."},
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "The instruction sets that this processor can run."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled CPU kernels of isp-distill.", -1, methods,
    nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

// What the plain variant is compiled for: the vectors that every processor of the architecture has.
#if defined(__aarch64__)
constexpr const char* kBaseline = "NEON";
#elif defined(__x86_64__)
constexpr const char* kBaseline = "SSE2";
#else
constexpr const char* kBaseline = "";
#endif

// What the Python sources expect of this library; raised here and in isp_distill/backends/cpu_library.py whenever
// an operator appears or changes its arguments.
constexpr long kInterface = 8;

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr &&
      (PyModule_AddIntConstant(module, "interface", kInterface) != 0 ||
       PyModule_AddStringConstant(module, "baseline", kBaseline) != 0)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
