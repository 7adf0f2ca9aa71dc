// Runs the operators of isp_distill's CPU library in a process without torch and without Python:
//
//   driver path/of/_C.abi3.so
//
// It writes the operators' schemas, then reads calls and writes results until its input ends. The
// format, little-endian throughout, is what arm_process.py writes and reads.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "tensor.h"

namespace {

template <class T>
T read() {
  T value;
  if (std::fread(&value, sizeof(T), 1, stdin) != 1) std::exit(0);
  return value;
}

void read(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(1);
}

void write(const void* from, size_t bytes) { std::fwrite(from, 1, bytes, stdout); }

template <class T>
void write(T value) {
  write(&value, sizeof(T));
}

void write(const std::string& text) {
  write<uint32_t>(text.size());
  write(text.data(), text.size());
}

// The bytes of a tensor's storage, as far from a cache line's start as they were in the caller, between
// two guards that nothing may write to.
class Storage {
 public:
  explicit Storage(uint32_t misalignment, uint64_t bytes)
      : bytes_(bytes),
        memory_(static_cast<char*>(std::aligned_alloc(64, (bytes + 64 + 2 * kGuard + 63) / 64 * 64))),
        data_(memory_ + kGuard + misalignment) {
    std::memset(data_ - kGuard, kFilling, kGuard);
    std::memset(data_ + bytes, kFilling, kGuard);
    read(data_, bytes);
  }
  ~Storage() { std::free(memory_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  bool whole() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (data_[bytes_ + i] != kFilling || data_[i - kGuard] != kFilling) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 128;
  static constexpr char kFilling = 0x5a;
  uint64_t bytes_;
  char *memory_, *data_;
};

struct Call {
  std::string name;
  std::vector<std::unique_ptr<Storage>> storages;
  std::vector<bool> written;
  std::vector<StableIValue> stack;
  uint32_t inputs, outputs;
};

StableIValue read_tensor(const Call& call) {
  auto* tensor = new Tensor;
  const auto storage = read<uint32_t>();
  const auto offset = read<uint64_t>();
  tensor->data = call.storages.at(storage)->data() + offset;
  tensor->dtype = read<int32_t>();
  tensor->storage_bytes = static_cast<int64_t>(call.storages[storage]->bytes());
  tensor->storage_offset =
      static_cast<int64_t>(offset / aoti_torch_dtype_element_size(tensor->dtype));
  const auto axes = read<uint32_t>();
  for (auto* list : {&tensor->sizes, &tensor->strides}) {
    for (uint32_t d = 0; d < axes; ++d) list->push_back(read<int64_t>());
  }
  return reinterpret_cast<StableIValue>(tensor);
}

// A kind ("t"ensor, "n"umber or "-" for None), whether the operator takes None there, and the value.
StableIValue read_argument(const Call& call) {
  const auto kind = read<char>();
  const auto optional = read<uint8_t>();
  if (kind == '-') return 0;
  const StableIValue value = kind == 't' ? read_tensor(call) : read<StableIValue>();
  return optional ? reinterpret_cast<StableIValue>(new StableIValue(value)) : value;
}

Call read_call() {
  Call call;
  call.name.resize(read<uint32_t>());
  read(call.name.data(), call.name.size());
  const auto storages = read<uint32_t>();
  for (uint32_t i = 0; i < storages; ++i) {
    call.written.push_back(read<uint8_t>());
    const auto misalignment = read<uint32_t>();
    call.storages.push_back(std::make_unique<Storage>(misalignment, read<uint64_t>()));
  }
  call.inputs = read<uint32_t>();
  call.outputs = read<uint32_t>();
  for (uint32_t i = 0; i < call.inputs; ++i) call.stack.push_back(read_argument(call));
  if (call.stack.size() < call.outputs) call.stack.resize(call.outputs);
  return call;
}

void answer(const Call& call) {
  for (const auto& storage : call.storages) {
    if (!storage->whole()) return write(call.name + " wrote outside the memory of a tensor");
  }
  write<uint32_t>(0);
  for (size_t i = 0; i < call.storages.size(); ++i) {
    if (call.written[i]) write(call.storages[i]->data(), call.storages[i]->bytes());
  }
  for (uint32_t i = 0; i < call.outputs; ++i) {
    auto* tensor = reinterpret_cast<Tensor*>(call.stack[i]);
    write<int32_t>(tensor->dtype);
    write<uint32_t>(tensor->sizes.size());
    for (int64_t size : tensor->sizes) write(size);
    write(tensor->data, elements_of(*tensor) * aoti_torch_dtype_element_size(tensor->dtype));
    delete tensor;
  }
}

}  // namespace

int main(int, char** arguments) {
  if (dlopen(arguments[1], RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  write<uint32_t>(schemas.size());
  for (const std::string& schema : schemas) write(schema);
  std::fflush(stdout);
  for (;;) {
    Call call = read_call();
    try {
      functions.at(call.name)(call.stack.data(), call.inputs, call.outputs);
      answer(call);
    } catch (const std::exception& error) {
      write(std::string(error.what()));
    }
    std::fflush(stdout);
  }
}
