// The operator isp_distill_cuda::raw_conv_forward: checks, the plan of the tiles, the launch.
//
// It neither waits for the GPU nor allocates, so that a CUDA graph can hold it.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>

#include "cuda/raw_conv_call.h"

namespace isp_distill::cuda {

// raw_conv_forward.cu
#define ISP_DECLARED(name) \
  __global__ void name(const __grid_constant__ RawConvCall, const __grid_constant__ Layout)
ISP_DECLARED(raw_conv_forward_bfloat16);
ISP_DECLARED(raw_conv_forward_float16);
ISP_DECLARED(raw_conv_forward_float32);
#undef ISP_DECLARED

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void require(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "raw_conv on CUDA: ", what);
}

void require(cudaError_t error) { require(error == cudaSuccess, cudaGetErrorString(error)); }

Sensor sensor_of(const Tensor& mosaic) {
  switch (mosaic.scalar_type()) {
    case ScalarType::Byte: return Sensor::uint8;
    case ScalarType::UInt16: return Sensor::uint16;
    case ScalarType::Short: return Sensor::int16;
    case ScalarType::Int: return Sensor::int32;
    case ScalarType::Half: return Sensor::float16;
    case ScalarType::Float: return Sensor::float32;
    default: STD_TORCH_CHECK(false, "raw_conv on CUDA: the mosaic has a type that no kernel takes");
  }
}

// Contiguous, of the given type and shape, on the GPU of `like`.
const void* data_of(const Tensor& tensor, const Tensor& like, ScalarType type,
                    std::initializer_list<int64_t> shape, const char* what) {
  bool holds = tensor.is_cuda() && tensor.get_device_index() == like.get_device_index() &&
               tensor.scalar_type() == type && tensor.is_contiguous() &&
               tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (int64_t size : shape) holds = holds && tensor.size(axis++) == size;
  require(holds, what);
  return tensor.data_ptr();
}

const float* floats(const std::optional<Tensor>& tensor, const Tensor& like,
                    std::initializer_list<int64_t> shape, const char* what) {
  if (!tensor) return nullptr;
  return static_cast<const float*>(data_of(*tensor, like, ScalarType::Float, shape, what));
}

// Whether the elements of [N, C, H, W] lie as they should; the stride of an axis of 1 means nothing.
bool lies_as(const Tensor& image, bool channels_last) {
  static constexpr int64_t kOrders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t expected = 1;
  for (int64_t axis : kOrders[channels_last]) {
    if (image.size(axis) != 1 && image.stride(axis) != expected) return false;
    expected *= image.size(axis);
  }
  return true;
}

int small(int64_t value, const char* what) {
  require(value >= 0 && value <= std::numeric_limits<int>::max() / 8, what);
  return static_cast<int>(value);
}

struct Settings {
  int64_t stride, left, right, top, bottom;
  bool clip;
  int64_t curve, activation;
  bool channels_last;
};

RawConvCall call_of(const Tensor& mosaic, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& black, const Tensor& scale, const Tensor& pattern,
                    const std::optional<Tensor>& padding_value, const std::optional<Tensor>& mix,
                    const std::optional<Tensor>& gamma, const Settings& s, const Tensor& out) {
  require(mosaic.is_cuda() && mosaic.dim() == 3, "mosaic must be [N, H, W] on a GPU");
  require(mosaic.size(1) % 2 == 0 && mosaic.size(2) % 2 == 0, "the mosaic has an odd edge");
  require(mosaic.size(2) == 0 || mosaic.stride(2) == 1, "the mosaic's rows must be contiguous");
  require(weight.dim() == 4 && weight.size(0) > 0, "weight must be [C, 4, K, K]");
  require(weight.size(2) >= 1 && weight.size(2) <= kLargestKernel, "no kernel of this size");
  require(s.stride >= 1 && s.stride <= 64, "no stride of this size");
  require(s.curve >= 0 && s.curve <= 3, "unknown curve");
  require(s.activation >= 0 && s.activation <= 4, "unknown activation");
  require(s.curve != static_cast<int64_t>(Curve::gamma) || gamma, "the gamma curve needs its exponent");
  RawConvCall c = {};
  c.mosaic = mosaic.data_ptr(), c.sensor = sensor_of(mosaic);
  c.mosaic_sample = mosaic.stride(0), c.mosaic_row = mosaic.stride(1);
  c.batch = small(mosaic.size(0), "too many samples");
  c.height = small(mosaic.size(1) / 2, "the mosaic is too high");
  c.width = small(mosaic.size(2) / 2, "the mosaic is too wide");
  c.channels = small(weight.size(0), "too many channels"), c.kernel = small(weight.size(2), "kernel");
  c.stride = static_cast<int>(s.stride);
  c.left = small(s.left, "left padding"), c.top = small(s.top, "top padding");
  const int64_t height = c.height + c.top + small(s.bottom, "bottom padding");
  const int64_t width = c.width + c.left + small(s.right, "right padding");
  require(height >= c.kernel && width >= c.kernel, "the kernel does not fit");
  c.out_height = static_cast<int>((height - c.kernel) / c.stride + 1);
  c.out_width = static_cast<int>((width - c.kernel) / c.stride + 1);
  c.weight = floats(weight, mosaic, {c.channels, 4, c.kernel, c.kernel}, "weight: float32 [C, 4, K, K]");
  c.bias = floats(bias, mosaic, {c.channels}, "bias: float32 [C]");
  c.black = floats(black, mosaic, {c.batch, 4}, "black: float32 [N, 4]");
  c.scale = floats(scale, mosaic, {c.batch, 4}, "scale: float32 [N, 4]");
  c.padding_value = floats(padding_value, mosaic, {4}, "padding_value: float32 [4]");
  c.mix = floats(mix, mosaic, {c.batch, 4, 4}, "mix: float32 [N, 4, 4]");
  c.gamma = floats(gamma, mosaic, {}, "gamma: float32 []");
  c.pattern = static_cast<const int64_t*>(
      data_of(pattern, mosaic, ScalarType::Long, {c.batch}, "pattern: int64 [N]"));
  c.clip = s.clip, c.channels_last = s.channels_last;
  c.curve = static_cast<Curve>(s.curve), c.activation = static_cast<Activation>(s.activation);
  require(out.is_cuda() && out.get_device_index() == mosaic.get_device_index() && out.dim() == 4 &&
              out.size(0) == c.batch && out.size(1) == c.channels && out.size(2) == c.out_height &&
              out.size(3) == c.out_width && lies_as(out, c.channels_last),
          "out must be [N, C, h, w], contiguous or channels_last as the call says");
  c.out = out.data_ptr();
  return c;
}

using Kernel = void (*)(RawConvCall, Layout);

Kernel kernel_of(ScalarType type) {
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
          "out must be float32, bfloat16 or float16");
  return type == ScalarType::Float      ? raw_conv_forward_float32
         : type == ScalarType::BFloat16 ? raw_conv_forward_bfloat16
                                        : raw_conv_forward_float16;
}

// As many blocks as the GPU runs at once, shared among the groups of channels: each walks its tiles.
unsigned persistent_blocks(Kernel kernel, int shared, int device, int64_t tiles, int groups) {
  int of_processor = 0, processors = 0;
  require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_processor, kernel, kThreads, shared));
  require(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  require(of_processor > 0, "the GPU has too little shared memory for a tile of this call");
  const int64_t wanted = std::max(int64_t{of_processor} * processors / groups, int64_t{1});
  return static_cast<unsigned>(std::min(wanted, tiles));
}

void raw_conv_forward(
    Tensor mosaic, Tensor weight, std::optional<Tensor> bias, Tensor black, Tensor scale,
    Tensor pattern, std::optional<Tensor> padding_value, std::optional<Tensor> mix,
    std::optional<Tensor> gamma, int64_t stride, int64_t left, int64_t right, int64_t top,
    int64_t bottom, bool clip, int64_t curve, int64_t activation, bool channels_last, Tensor out) {
  RawConvCall c = call_of(
      mosaic, weight, bias, black, scale, pattern, padding_value, mix, gamma,
      {stride, left, right, top, bottom, clip, curve, activation, channels_last}, out);
  const Kernel kernel = kernel_of(out.scalar_type());
  const int bytes = out.scalar_type() == ScalarType::Float ? 4 : 2;
  if (out.numel() == 0) return;
  plan_tiles(c, bytes);
  Layout l;
  require(plan_forward(c, bytes, l), "a tile of this kernel and stride does not fit shared memory");
  const int groups = (c.channels + c.group - 1) / c.group;
  require(groups <= 65535, "too many channels");

  const int device = mosaic.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  // The same for every call: two threads that each set what they need would take it from each other.
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const unsigned blocks = persistent_blocks(kernel, l.total, device, c.tiles, groups);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  kernel<<<dim3(blocks, groups), kThreads, l.total, static_cast<cudaStream_t>(stream)>>>(c, l);
  require(cudaGetLastError());
}

}  // namespace
}  // namespace isp_distill::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cuda, library) {
  library.def(
      "raw_conv_forward(Tensor mosaic, Tensor weight, Tensor? bias, Tensor black, Tensor scale, "
      "Tensor pattern, Tensor? padding_value, Tensor? mix, Tensor? gamma, int stride, int left, "
      "int right, int top, int bottom, bool clip, int curve, int activation, bool channels_last, "
      "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cuda, CUDA, library) {
  library.impl("raw_conv_forward", TORCH_BOX(&isp_distill::cuda::raw_conv_forward));
}
