// The part of torch's C interface that isp_distill's CPU library calls, so that the library runs where
// there is no torch. Sizes, strides and types are real, and everything else is as little as will do.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tensor.h"

std::vector<std::string> schemas;
std::map<std::string, Boxed> functions;

int64_t elements_of(const Tensor& tensor) {
  int64_t count = 1;
  for (int64_t size : tensor.sizes) count *= size;
  return count;
}

namespace {

// The numbers of types, in the order of DTYPES in arm_process.py, and the bytes of each.
enum { kUint8, kUint16, kInt16, kInt32, kInt64, kFloat16, kBfloat16, kFloat32, kFloat64, kBool };
constexpr size_t kBytes[] = {1, 2, 2, 4, 8, 2, 2, 4, 8, 1};

int64_t axis_of(const Tensor& tensor, int64_t d) {
  return d < 0 ? d + static_cast<int64_t>(tensor.sizes.size()) : d;
}

Tensor* new_empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  auto* tensor = new Tensor;
  tensor->dtype = dtype;
  tensor->sizes = sizes;
  tensor->strides.assign(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) tensor->strides[d - 1] = tensor->strides[d] * sizes[d];
  const size_t bytes = std::max<size_t>(elements_of(*tensor) * kBytes[dtype], 1);
  tensor->owner = {static_cast<char*>(std::malloc(bytes)), std::free};
  tensor->data = tensor->owner.get();
  tensor->storage_bytes = static_cast<int64_t>(bytes);
  return tensor;
}

}  // namespace

#define NUMBER(function, value) \
  extern "C" int32_t function() { return value; }
NUMBER(aoti_torch_dtype_uint8, kUint8)
NUMBER(aoti_torch_dtype_uint16, kUint16)
NUMBER(aoti_torch_dtype_int16, kInt16)
NUMBER(aoti_torch_dtype_int32, kInt32)
NUMBER(aoti_torch_dtype_int64, kInt64)
NUMBER(aoti_torch_dtype_float16, kFloat16)
NUMBER(aoti_torch_dtype_bfloat16, kBfloat16)
NUMBER(aoti_torch_dtype_float32, kFloat32)
NUMBER(aoti_torch_dtype_float64, kFloat64)
NUMBER(aoti_torch_dtype_bool, kBool)
// Types that no kernel takes: the library only asks for their numbers.
NUMBER(aoti_torch_dtype_int8, 100)
NUMBER(aoti_torch_dtype_uint32, 101)
NUMBER(aoti_torch_dtype_uint64, 102)
NUMBER(aoti_torch_dtype_complex32, 103)
NUMBER(aoti_torch_dtype_complex64, 104)
NUMBER(aoti_torch_dtype_complex128, 105)
NUMBER(aoti_torch_dtype_float8_e5m2, 106)
NUMBER(aoti_torch_dtype_float8_e4m3fn, 107)
NUMBER(aoti_torch_dtype_float8_e5m2fnuz, 108)
NUMBER(aoti_torch_dtype_float8_e4m3fnuz, 109)
NUMBER(aoti_torch_device_type_cpu, 0)
NUMBER(aoti_torch_device_type_cuda, 1)

extern "C" {

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }
size_t aoti_torch_dtype_element_size(int32_t dtype) { return kBytes[dtype]; }

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle t, void** ret) {
  *ret = tensor_of(t)->data;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle t, int32_t* ret) {
  *ret = tensor_of(t)->dtype;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* ret) {
  *ret = aoti_torch_device_type_cpu();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* ret) {
  *ret = static_cast<int64_t>(tensor_of(t)->sizes.size());
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle t, int64_t* ret) {
  *ret = elements_of(*tensor_of(t));
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle t, int64_t d, int64_t* ret) {
  *ret = tensor_of(t)->sizes.at(axis_of(*tensor_of(t), d));
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle t, int64_t d, int64_t* ret) {
  *ret = tensor_of(t)->strides.at(axis_of(*tensor_of(t), d));
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle t, int64_t* ret) {
  *ret = tensor_of(t)->storage_bytes;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle t, int64_t* ret) {
  *ret = tensor_of(t)->storage_offset;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle t, bool* ret) {
  const Tensor& tensor = *tensor_of(t);
  int64_t step = 1;
  *ret = true;
  for (size_t d = tensor.sizes.size(); d-- > 0; step *= tensor.sizes[d]) {
    if (tensor.sizes[d] != 1 && tensor.strides[d] != step) *ret = elements_of(tensor) == 0;
  }
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle t, AtenTensorHandle* ret) {
  *ret = handle_of(new Tensor(*tensor_of(t)));
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle t) {
  delete tensor_of(t);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* ret) {
  *ret = reinterpret_cast<StableListHandle>(new std::vector<int64_t>);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue element) {
  reinterpret_cast<std::vector<int64_t>*>(list)->push_back(static_cast<int64_t>(element));
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete reinterpret_cast<std::vector<int64_t>*>(list);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_call_dispatcher(
    const char* name, const char*, StableIValue* stack, uint64_t) {
  if (std::strcmp(name, "aten::new_empty") != 0) return AOTI_TORCH_FAILURE;
  auto* sizes = reinterpret_cast<std::vector<int64_t>*>(stack[1]);
  auto* dtype = reinterpret_cast<StableIValue*>(stack[2]);  // always given
  Tensor* made = new_empty(*sizes, static_cast<int32_t>(*dtype));
  delete reinterpret_cast<Tensor*>(stack[0]);
  delete sizes;
  delete dtype;
  stack[0] = reinterpret_cast<StableIValue>(made);
  return AOTI_TORCH_SUCCESS;
}

// Three threads in turn: pieces of work as on a machine with as many.
AOTITorchError torch_get_num_threads(uint32_t* ret) {
  *ret = 3;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_parallel_for(
    int64_t begin, int64_t end, int64_t, ParallelFunc run, void* context) {
  const int64_t each = std::max<int64_t>((end - begin + 2) / 3, 1);
  for (int64_t i = begin; i < end; i += each) run(i, std::min(i + each, end), context);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_library_init_impl(
    const char*, const char*, const char*, uint32_t, TorchLibraryHandle* ret) {
  *ret = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_library_init_fragment(
    const char*, const char*, uint32_t, TorchLibraryHandle* ret) {
  *ret = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* schema) {
  schemas.emplace_back(schema);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Boxed run, uint64_t) {
  functions[name] = run;
  return AOTI_TORCH_SUCCESS;
}

// The library is a Python module as well. Its functions are bound when they are called, which is never;
// data is bound when it is loaded.
void* PyExc_RuntimeError = nullptr;

}  // extern "C"
