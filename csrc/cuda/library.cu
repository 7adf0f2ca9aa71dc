// The Python module isp_distill._cuda. Loading it registers the operators of the other files; the
// module itself only tells whether its CUDA runtime works with this machine's driver.
#include <Python.h>

#include <cuda_runtime.h>

namespace {

PyObject* problem(PyObject*, PyObject*) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) Py_RETURN_NONE;
  return PyUnicode_FromString(error == cudaSuccess ? "no GPU was found" : cudaGetErrorString(error));
}

PyMethodDef methods[] = {
    {"problem", problem, METH_NOARGS, "Why the CUDA runtime finds no GPU, or None."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_cuda", "Compiled CUDA kernels of isp-distill.", -1, methods,
    nullptr, nullptr, nullptr, nullptr,
};

// Raised here and in isp_distill/backends/cuda_library.py whenever an operator appears or changes.
constexpr long kInterface = 4;

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__cuda() {
  PyObject* self = PyModule_Create(&definition);
  if (self != nullptr && PyModule_AddIntConstant(self, "interface", kInterface) != 0) {
    Py_DECREF(self);
    return nullptr;
  }
  return self;
}
