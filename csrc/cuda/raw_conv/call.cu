// The operators isp_distill_cuda::raw_conv_*: checks, the plan of the tiles, the launches.
//
// They never wait for the GPU, and torch allocates what they need, so that a CUDA graph can hold them.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>

#include "cuda/raw_conv/call.h"

namespace isp_distill::cuda {

// forward.cu, backward.cu
#define ISP_DECLARED(name) \
  __global__ void name(const __grid_constant__ RawConvCall, const __grid_constant__ Layout)
ISP_DECLARED(raw_conv_forward_bfloat16);
ISP_DECLARED(raw_conv_forward_float16);
ISP_DECLARED(raw_conv_forward_float32);
ISP_DECLARED(raw_conv_backward_bfloat16);
ISP_DECLARED(raw_conv_backward_float16);
ISP_DECLARED(raw_conv_backward_float32);
#undef ISP_DECLARED
__global__ void raw_conv_add_up(const float* sums, float* out, int places, int size);

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
  int64_t packing, pixels;
};

RawConvCall call_of(const Tensor& mosaic, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& black, const Tensor& scale, const Tensor& pattern,
                    const std::optional<Tensor>& padding_value, const std::optional<Tensor>& mix,
                    const std::optional<Tensor>& gamma, const std::optional<Tensor>& linearise,
                    const Settings& s) {
  require(mosaic.is_cuda() && mosaic.dim() == 3, "mosaic must be [N, H, W] on a GPU");
  require(mosaic.size(1) % 2 == 0 && s.pixels >= 0 && s.pixels % 2 == 0, "the mosaic has an odd edge");
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
  c.width = small(s.pixels / 2, "the mosaic is too wide");
  require(s.packing >= 0 && s.packing <= 6, "unknown packing");
  c.packing = static_cast<Packing>(s.packing);
  const int64_t length = row_bytes(c, s.pixels);
  require(c.packing == Packing::none ? mosaic.size(2) == s.pixels
                                     : c.sensor == Sensor::uint8 && mosaic.size(2) >= length,
          "the mosaic's rows do not have as many pixels as the call says");
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
  if (linearise) {
    const bool each = linearise->dim() == 2 && linearise->size(0) == c.batch;
    require(linearise->dim() == 2 && (each || linearise->size(0) == 1) && linearise->size(1) > 0,
            "linearise: float32 [N, L] or [1, L]");
    require(c.sensor != Sensor::float16 && c.sensor != Sensor::float32, "linearise takes codes");
    c.linearise = floats(linearise, mosaic, {linearise->size(0), linearise->size(1)},
                         "linearise: float32 [N, L] or [1, L]");
    c.table_step = linearise->size(0) == 1 ? 0 : linearise->size(1);
    c.last_code = small(linearise->size(1) - 1, "linearise is too long");
  }
  c.pattern = static_cast<const int64_t*>(
      data_of(pattern, mosaic, ScalarType::Long, {c.batch}, "pattern: int64 [N]"));
  c.clip = s.clip, c.channels_last = s.channels_last;
  c.curve = static_cast<Curve>(s.curve), c.activation = static_cast<Activation>(s.activation);
  return c;
}

// The output or its gradient, laid out as the call says.
void* image_of(const Tensor& image, const RawConvCall& c, const Tensor& like, const char* what) {
  require(image.is_cuda() && image.get_device_index() == like.get_device_index() &&
              image.dim() == 4 && image.size(0) == c.batch && image.size(1) == c.channels &&
              image.size(2) == c.out_height && image.size(3) == c.out_width &&
              lies_as(image, c.channels_last),
          what);
  return image.data_ptr();
}

using Kernel = void (*)(RawConvCall, Layout);

Kernel kernel_of(ScalarType type, bool backward) {
  switch (type) {
    case ScalarType::Float: return backward ? raw_conv_backward_float32 : raw_conv_forward_float32;
    case ScalarType::Half: return backward ? raw_conv_backward_float16 : raw_conv_forward_float16;
    case ScalarType::BFloat16:
      return backward ? raw_conv_backward_bfloat16 : raw_conv_forward_bfloat16;
    default:
      STD_TORCH_CHECK(false, "raw_conv on CUDA: the output must be float32, bfloat16 or float16");
  }
}

int bytes_of(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

// As many blocks as the GPU runs at once, shared among the groups of channels: each walks its tiles.
unsigned persistent_blocks(Kernel kernel, int shared, int device, int64_t tiles, int groups) {
  // The same for every call: two threads that each set what they need would take it from each other.
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  int of_processor = 0, processors = 0;
  require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_processor, kernel, kThreads, shared));
  require(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  require(of_processor > 0, "the GPU has too little shared memory for a tile of this call");
  const int64_t wanted = std::max(int64_t{of_processor} * processors / groups, int64_t{1});
  return static_cast<unsigned>(std::min(wanted, tiles));
}

cudaStream_t stream_of(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

void raw_conv_forward(
    Tensor mosaic, Tensor weight, std::optional<Tensor> bias, Tensor black, Tensor scale,
    Tensor pattern, std::optional<Tensor> padding_value, std::optional<Tensor> mix,
    std::optional<Tensor> gamma, std::optional<Tensor> linearise, int64_t stride, int64_t left,
    int64_t right, int64_t top, int64_t bottom, bool clip, int64_t curve, int64_t activation,
    bool channels_last, int64_t packing, int64_t pixels, Tensor out) {
  RawConvCall c = call_of(
      mosaic, weight, bias, black, scale, pattern, padding_value, mix, gamma, linearise,
      {stride, left, right, top, bottom, clip, curve, activation, channels_last, packing, pixels});
  c.out = image_of(out, c, mosaic, "out must be [N, C, h, w], laid out as the call says");
  const Kernel kernel = kernel_of(out.scalar_type(), false);
  const int bytes = bytes_of(out.scalar_type());
  if (out.numel() == 0) return;
  plan_tiles(c, bytes);
  Layout l;
  require(plan_forward(c, bytes, l), "a tile of this kernel and stride does not fit shared memory");
  const int groups = (c.channels + c.group - 1) / c.group;
  require(groups <= 65535, "too many channels");

  const int device = mosaic.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const unsigned blocks = persistent_blocks(kernel, l.total, device, c.tiles, groups);
  kernel<<<dim3(blocks, groups), kThreads, l.total, stream_of(device)>>>(c, l);
  require(cudaGetLastError());
}

// A tensor's places added up into `out`, in their order.
void add_up(const Tensor& sums, const Tensor& out, int places, cudaStream_t stream) {
  const int size = static_cast<int>(out.numel());
  raw_conv_add_up<<<(size + 31) / 32, kThreads, 4 * kThreads, stream>>>(
      static_cast<const float*>(sums.data_ptr()), static_cast<float*>(out.data_ptr()), places, size);
  require(cudaGetLastError());
}

// Both gradients are written.
void raw_conv_backward(
    Tensor mosaic, Tensor weight, std::optional<Tensor> bias, Tensor black, Tensor scale,
    Tensor pattern, std::optional<Tensor> padding_value, std::optional<Tensor> mix,
    std::optional<Tensor> gamma, std::optional<Tensor> linearise, int64_t stride, int64_t left,
    int64_t right, int64_t top, int64_t bottom, bool clip, int64_t curve, int64_t activation,
    bool channels_last, int64_t packing, int64_t pixels, Tensor grad, std::optional<Tensor> out,
    Tensor of_weight, Tensor of_bias) {
  RawConvCall c = call_of(
      mosaic, weight, bias, black, scale, pattern, padding_value, mix, gamma, linearise,
      {stride, left, right, top, bottom, clip, curve, activation, channels_last, packing, pixels});
  c.grad = image_of(grad, c, mosaic, "grad must be [N, C, h, w], laid out as the call says");
  if (out) {
    require(out->scalar_type() == grad.scalar_type(), "out and grad must have one type");
    c.out = image_of(*out, c, mosaic, "out must be [N, C, h, w], laid out as the call says");
  }
  require(c.activation == Activation::none ||
              (out && (c.activation == Activation::relu ||
                       (c.activation == Activation::relu6 && grad.scalar_type() == ScalarType::Float))),
          "the output does not tell this activation's derivative");
  data_of(of_weight, mosaic, ScalarType::Float, {c.channels, 4, c.kernel, c.kernel},
          "of_weight: float32 [C, 4, K, K]");
  data_of(of_bias, mosaic, ScalarType::Float, {c.channels}, "of_bias: float32 [C]");
  const Kernel kernel = kernel_of(grad.scalar_type(), true);
  const int bytes = bytes_of(grad.scalar_type());
  const int device = mosaic.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (grad.numel() == 0) {
    torch::stable::zero_(of_weight);
    torch::stable::zero_(of_bias);
    return;
  }
  plan_tiles(c, bytes);
  Layout l;
  require(plan_backward(c, bytes, l), "a tile of this kernel and stride does not fit shared memory");
  const int groups = (c.channels + c.group - 1) / c.group;
  require(groups <= 65535, "too many channels");
  const unsigned blocks = persistent_blocks(kernel, l.total, device, c.tiles, groups);
  const int64_t places = int64_t{blocks} * parts_of_block(c);
  require(of_weight.numel() <= std::numeric_limits<int>::max() - 32, "too many weights");
  Tensor weight_sums = torch::stable::new_empty(of_weight, {places, of_weight.numel()});
  Tensor bias_sums = torch::stable::new_empty(of_bias, {places, of_bias.numel()});
  c.weight_sums = static_cast<float*>(weight_sums.data_ptr());
  c.bias_sums = static_cast<float*>(bias_sums.data_ptr());
  const cudaStream_t stream = stream_of(device);
  kernel<<<dim3(blocks, groups), kThreads, l.total, stream>>>(c, l);
  require(cudaGetLastError());
  add_up(weight_sums, of_weight, static_cast<int>(places), stream);
  add_up(bias_sums, of_bias, static_cast<int>(places), stream);
}

}  // namespace
}  // namespace isp_distill::cuda

#define ISP_CALL                                                                                  \
  "Tensor mosaic, Tensor weight, Tensor? bias, Tensor black, Tensor scale, Tensor pattern, "      \
  "Tensor? padding_value, Tensor? mix, Tensor? gamma, Tensor? linearise, int stride, int left, "  \
  "int right, int top, int bottom, bool clip, int curve, int activation, bool channels_last, "    \
  "int packing, int pixels"

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cuda, library) {
  library.def("raw_conv_forward(" ISP_CALL ", Tensor(a!) out) -> ()");
  library.def("raw_conv_backward(" ISP_CALL
              ", Tensor grad, Tensor? out, Tensor(a!) of_weight, Tensor(b!) of_bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cuda, CUDA, library) {
  library.impl("raw_conv_forward", TORCH_BOX(&isp_distill::cuda::raw_conv_forward));
  library.impl("raw_conv_backward", TORCH_BOX(&isp_distill::cuda::raw_conv_backward));
}
