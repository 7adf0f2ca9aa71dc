// A tensor of the driver's: what is behind the handles that the kernels' library passes around.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Tensor {
  std::shared_ptr<char> owner;  // null where the driver itself keeps the memory
  char* data = nullptr;
  int32_t dtype = 0;
  std::vector<int64_t> sizes, strides;
  int64_t storage_bytes = 0, storage_offset = 0;  // the offset in elements
};

inline AtenTensorHandle handle_of(Tensor* tensor) { return reinterpret_cast<AtenTensorHandle>(tensor); }
inline Tensor* tensor_of(AtenTensorHandle handle) { return reinterpret_cast<Tensor*>(handle); }

int64_t elements_of(const Tensor& tensor);

// What the library registered when it was loaded: schemas in full, and boxed functions by name.
using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
extern std::vector<std::string> schemas;
extern std::map<std::string, Boxed> functions;
