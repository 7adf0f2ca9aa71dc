// The operators isp_distill_cpu::raw_conv_forward and raw_conv_backward: check the arguments, cut the
// work into pieces, and run the kernels of this processor's instruction set on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/raw_conv/call.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(
    raw_conv_forward_sizes, (const RawConv&, int64_t columns, int64_t* packed, int64_t* workspace))
ISP_DISTILL_DECLARE_KERNEL(raw_conv_pack, (const RawConv&, float* packed))
ISP_DISTILL_DECLARE_KERNEL(
    raw_conv_forward, (const RawConv&, const float* packed, const Piece&, float* workspace))
ISP_DISTILL_DECLARE_KERNEL(
    raw_conv_backward_sizes, (const RawConv&, int64_t columns, int64_t* packed, int64_t* workspace))
ISP_DISTILL_DECLARE_KERNEL(raw_conv_backward_pack, (const RawConv&, float* packed))
ISP_DISTILL_DECLARE_KERNEL(
    raw_conv_backward, (const RawConv&, const RawConvGradients&, const float* packed, const Piece&,
                        float* workspace))

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Image image_of(const Tensor& tensor, const RawConv& c, int64_t batch, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 4, name, " must be a 4-D tensor on the CPU");
  STD_TORCH_CHECK(
      tensor.size(0) == batch && tensor.size(1) == c.channels && tensor.size(2) == c.out_height &&
          tensor.size(3) == c.out_width,
      name, " has a wrong size");
  const Element type = element_of(tensor, name);
  STD_TORCH_CHECK(
      type == Element::float32 || type == Element::float16 || type == Element::bfloat16, name,
      " must be float32, bfloat16 or float16");
  return {tensor.data_ptr(), type, tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

constexpr int64_t kLargestKernel = 32;

struct Settings {
  int64_t stride, left, right, top, bottom;
  bool clip;
  int64_t curve, activation;
  int64_t packing, pixels;
};

// Everything that both passes read, checked; the vectors keep alive what `conv` points to.
struct Call {
  RawConv conv = {};
  int64_t batch = 0;
  std::vector<float> black, scale, unit, mix;
  std::vector<int64_t> pattern;

  Call(const Tensor& mosaic, const Tensor& weight, const std::optional<Tensor>& bias,
       const Tensor& black, const Tensor& white, const Tensor& pattern, const Tensor& gain,
       const std::optional<Tensor>& padding_value, const std::optional<Tensor>& mix,
       const std::optional<Tensor>& gamma, const std::optional<Tensor>& linearise,
       const Settings& settings) {
    take_mosaic(mosaic, linearise, settings);
    take_weight(weight, bias);
    take_camera(black, white, pattern, gain, mix);
    STD_TORCH_CHECK(settings.curve >= 0 && settings.curve <= 3, "unknown curve");
    STD_TORCH_CHECK(settings.activation >= 0 && settings.activation <= 4, "unknown activation");
    conv.curve = static_cast<Curve>(settings.curve);
    conv.activation = static_cast<Activation>(settings.activation);
    STD_TORCH_CHECK(conv.curve != Curve::gamma || gamma, "the gamma curve needs its exponent");
    if (gamma) {
      STD_TORCH_CHECK(gamma->numel() == 1, "gamma must be one exponent");
      conv.gamma = per_sample<float>(*gamma, ScalarType::Float, 1, {}, "gamma")[0];
    }
    conv.clip = settings.clip;
    if (padding_value) {
      STD_TORCH_CHECK(padding_value->dim() <= 1, "padding_value must be a number or [4]");
      const auto values =
          per_sample<float>(*padding_value, ScalarType::Float, 1, {4}, "padding_value");
      std::copy(values.begin(), values.end(), conv.padding_value);
    }
    place(settings);
  }

 private:
  void take_mosaic(
      const Tensor& mosaic, const std::optional<Tensor>& linearise, const Settings& settings) {
    STD_TORCH_CHECK(mosaic.is_cpu() && mosaic.dim() == 3, "mosaic must be [N, H, W] on the CPU");
    check_storage(mosaic, "mosaic");
    batch = mosaic.size(0);
    STD_TORCH_CHECK(
        mosaic.size(1) % 2 == 0 && mosaic.size(1) > 0 && settings.pixels > 0, "odd mosaic");
    STD_TORCH_CHECK(mosaic.stride(2) == 1, "the rows of the mosaic must be contiguous");
    conv.mosaic = mosaic.data_ptr();
    conv.packing = packing_of(mosaic, settings.packing, settings.pixels);
    conv.mosaic_type =
        conv.packing == Packing::none ? element_of(mosaic, "mosaic") : Element::uint16;
    STD_TORCH_CHECK(conv.mosaic_type != Element::bfloat16, "mosaic must not be bfloat16");
    conv.companding = companding_of(linearise, batch, conv.mosaic_type);
    conv.mosaic_sample = mosaic.stride(0);
    conv.mosaic_row = mosaic.stride(1);
    conv.height = mosaic.size(1) / 2;
    conv.width = settings.pixels / 2;
  }

  void take_weight(const Tensor& weight, const std::optional<Tensor>& bias) {
    STD_TORCH_CHECK(
        weight.dim() == 4 && weight.size(0) > 0 && weight.size(2) > 0, "weight must be [C, 4, K, K]");
    STD_TORCH_CHECK(weight.size(2) <= kLargestKernel, "kernels go up to ", kLargestKernel);
    conv.channels = weight.size(0);
    conv.kernel = weight.size(2);
    conv.weight = floats(weight, {conv.channels, 4, conv.kernel, conv.kernel}, "weight");
    conv.bias = floats(bias, {conv.channels}, "bias");
  }

  void take_camera(
      const Tensor& of_black, const Tensor& of_white, const Tensor& of_pattern, const Tensor& of_gain,
      const std::optional<Tensor>& of_mix) {
    black = per_sample<float>(of_black, ScalarType::Float, batch, {4}, "black");
    const auto white = per_sample<float>(of_white, ScalarType::Float, batch, {}, "white");
    const auto gain = per_sample<float>(of_gain, ScalarType::Float, batch, {4}, "gain");
    pattern = per_sample<int64_t>(of_pattern, ScalarType::Long, batch, {}, "pattern");
    scale.resize(4 * batch);
    unit.resize(4 * batch);
    for (int64_t i = 0; i < 4 * batch; ++i) {
      // Written so that NaN fails it too.
      STD_TORCH_CHECK(
          std::isfinite(black[i]) && black[i] < white[i / 4] && std::isfinite(white[i / 4]),
          "black ", black[i], " must be below white ", white[i / 4], ", and both finite");
      const float range = white[i / 4] - black[i];
      scale[i] = gain[i] / range;
      unit[i] = 1.0f / range;
    }
    conv.black = black.data();
    conv.scale = scale.data();
    conv.unit = unit.data();
    conv.pattern = pattern.data();
    if (!of_mix) return;
    STD_TORCH_CHECK(of_mix->dim() > 0, "mix has a wrong rank");
    mix = per_sample<float>(*of_mix, ScalarType::Float, batch, {4, 4}, "mix");
    conv.mix = mix.data();
  }

  void place(const Settings& settings) {
    STD_TORCH_CHECK(
        settings.stride > 0 && settings.left >= 0 && settings.right >= 0 && settings.top >= 0 &&
            settings.bottom >= 0,
        "stride must be positive and padding not negative");
    const int64_t height = conv.height + settings.top + settings.bottom;
    const int64_t width = conv.width + settings.left + settings.right;
    STD_TORCH_CHECK(height >= conv.kernel && width >= conv.kernel, "the kernel does not fit");
    // Beyond the padded picture a longer stride gives the same, but the strip of rows would be as long.
    conv.stride = std::min(settings.stride, std::max(height, width));
    conv.left = settings.left;
    conv.top = settings.top;
    conv.out_height = (height - conv.kernel) / conv.stride + 1;
    conv.out_width = (width - conv.kernel) / conv.stride + 1;
  }
};

// A strip of so many bytes stays in the second-level cache beside the weights and the output rows.
constexpr int64_t kStripBytes = 256 << 10;
constexpr int64_t kPieces = 64;
constexpr int64_t kLeastRows = 8;

// About kPieces pieces (more threads than that find no work here), with enough rows in each that the
// rows which two neighbours both convert are few.
std::vector<Piece> pieces_of(const RawConv& c, int64_t batch) {
  const int64_t phases = std::min(c.kernel, c.stride);
  const int64_t fit = std::max<int64_t>(kStripBytes / (16 * (c.kernel + 1) * phases), 128);
  const int64_t bands = (c.out_width + fit - 1) / fit;
  const int64_t parts = std::max<int64_t>(
      std::min(kPieces / std::max<int64_t>(batch * bands, 1), c.out_height / kLeastRows), 1);
  std::vector<Piece> pieces;
  pieces.reserve(batch * bands * parts);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t band = 0; band < bands; ++band) {
        pieces.push_back({n, c.out_height * part / parts, c.out_height * (part + 1) / parts,
                          c.out_width * band / bands, c.out_width * (band + 1) / bands});
      }
    }
  }
  return pieces;
}

int64_t widest(const std::vector<Piece>& pieces) {
  int64_t columns = 0;
  for (const Piece& p : pieces) columns = std::max(columns, p.column_end - p.column_begin);
  return columns;
}

void raw_conv_forward(
    Tensor mosaic, Tensor weight, std::optional<Tensor> bias, Tensor black, Tensor white,
    Tensor pattern, Tensor gain, std::optional<Tensor> padding_value, std::optional<Tensor> mix,
    std::optional<Tensor> gamma, std::optional<Tensor> linearise, int64_t stride, int64_t left,
    int64_t right, int64_t top, int64_t bottom, bool clip, int64_t curve, int64_t activation,
    int64_t packing, int64_t pixels, Tensor out) {
  Call call(mosaic, weight, bias, black, white, pattern, gain, padding_value, mix, gamma,
            linearise, {stride, left, right, top, bottom, clip, curve, activation, packing, pixels});
  RawConv& conv = call.conv;
  conv.out = image_of(out, conv, call.batch, "out");
  STD_TORCH_CHECK(
      conv.out.column == 1 || conv.out.channel == 1, "out must be contiguous or channels_last");
  advise_huge_pages(out);
  const auto pack = ISP_DISTILL_KERNEL(raw_conv_pack);
  const auto run = ISP_DISTILL_KERNEL(raw_conv_forward);
  const std::vector<Piece> pieces = pieces_of(conv, call.batch);
  int64_t packed_floats = 0, workspace_floats = 0;
  ISP_DISTILL_KERNEL(raw_conv_forward_sizes)
  (conv, widest(pieces), &packed_floats, &workspace_floats);
  const Buffer packed = allocate(packed_floats);
  pack(conv, packed.get());
  for_each(static_cast<int64_t>(pieces.size()), workspace_floats,
           [&](int64_t i, float* workspace) { run(conv, packed.get(), pieces[i], workspace); });
}

// Sums over the pieces in their order, in float64.
void add_up(const float* parts, int64_t count, int64_t size, float* out) {
  std::vector<double> total(size, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < size; ++j) total[j] += parts[i * size + j];
  }
  for (int64_t j = 0; j < size; ++j) out[j] = static_cast<float>(total[j]);
}

constexpr int64_t kColourTerms = 4 + 16 + 1;  // gain, mix, gamma: one set for each piece
constexpr int64_t kPartialBytes = 16 << 20;

void raw_conv_backward(
    Tensor grad_out, std::optional<Tensor> out, Tensor mosaic, Tensor weight,
    std::optional<Tensor> bias, Tensor black, Tensor white, Tensor pattern, Tensor gain,
    std::optional<Tensor> padding_value, std::optional<Tensor> mix, std::optional<Tensor> gamma,
    std::optional<Tensor> linearise, int64_t stride, int64_t left, int64_t right, int64_t top,
    int64_t bottom, bool clip, int64_t curve, int64_t activation, int64_t packing, int64_t pixels,
    std::optional<Tensor> grad_weight, std::optional<Tensor> grad_bias,
    std::optional<Tensor> grad_gain, std::optional<Tensor> grad_mix, std::optional<Tensor> grad_gamma) {
  Call call(mosaic, weight, bias, black, white, pattern, gain, padding_value, mix, gamma,
            linearise, {stride, left, right, top, bottom, clip, curve, activation, packing, pixels});
  RawConv& conv = call.conv;
  const int64_t batch = call.batch;
  const Image gradient = image_of(grad_out, conv, batch, "grad_out");
  if (out) conv.out = image_of(*out, conv, batch, "out");
  const int64_t weights = conv.channels * 4 * conv.kernel * conv.kernel;
  float* to_weight = floats(grad_weight, {conv.channels, 4, conv.kernel, conv.kernel}, "grad_weight");
  float* to_bias = floats(grad_bias, {conv.channels}, "grad_bias");
  float* to_gain = floats(grad_gain, {batch, 4}, "grad_gain");
  float* to_mix = floats(grad_mix, {batch, 4, 4}, "grad_mix");
  float* to_gamma = floats(grad_gamma, {}, "grad_gamma");
  STD_TORCH_CHECK(!to_mix || mix, "no mix to find a gradient of");
  STD_TORCH_CHECK(!to_gamma || conv.curve == Curve::gamma, "no gamma to find a gradient of");

  const auto pack = ISP_DISTILL_KERNEL(raw_conv_backward_pack);
  const auto run = ISP_DISTILL_KERNEL(raw_conv_backward);
  const std::vector<Piece> pieces = pieces_of(conv, batch);
  const int64_t count = static_cast<int64_t>(pieces.size());
  int64_t packed_floats = 0, workspace_floats = 0;
  ISP_DISTILL_KERNEL(raw_conv_backward_sizes)
  (conv, widest(pieces), &packed_floats, &workspace_floats);
  const Buffer packed = allocate(packed_floats);
  pack(conv, packed.get());

  // Each group of consecutive pieces adds to a partial sum of its own. How many groups there are
  // depends on the shapes alone, so the result is the same for every number of threads.
  const int64_t most = std::max<int64_t>(kPartialBytes / 4 / (weights + conv.channels), 2);
  const int64_t groups = std::min({count, most, kPieces});
  const Buffer weight_parts = allocate(groups * weights), bias_parts = allocate(groups * conv.channels);
  const Buffer colour_parts = allocate(count * kColourTerms);
  std::fill_n(weight_parts.get(), groups * weights, 0.0f);
  std::fill_n(bias_parts.get(), groups * conv.channels, 0.0f);
  std::fill_n(colour_parts.get(), count * kColourTerms, 0.0f);
  const bool colour = to_gain || to_mix || to_gamma;
  for_each(groups, workspace_floats, [&](int64_t group, float* workspace) {
    for (int64_t i = count * group / groups; i < count * (group + 1) / groups; ++i) {
      float* terms = colour ? colour_parts.get() + i * kColourTerms : nullptr;
      const RawConvGradients gradients = {
          gradient, to_weight ? weight_parts.get() + group * weights : nullptr,
          to_bias ? bias_parts.get() + group * conv.channels : nullptr, terms};
      run(conv, gradients, packed.get(), pieces[i], workspace);
    }
  });

  if (to_weight) add_up(weight_parts.get(), groups, weights, to_weight);
  if (to_bias) add_up(bias_parts.get(), groups, conv.channels, to_bias);
  if (!colour) return;
  std::vector<double> terms((batch + 1) * kColourTerms, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < kColourTerms; ++j) {
      const int64_t sample = j == kColourTerms - 1 ? batch : pieces[i].sample;
      terms[sample * kColourTerms + j] += colour_parts.get()[i * kColourTerms + j];
    }
  }
  for (int64_t n = 0; n < batch; ++n) {
    const double* of_sample = terms.data() + n * kColourTerms;
    if (to_gain) std::copy(of_sample, of_sample + 4, to_gain + 4 * n);
    if (to_mix) std::copy(of_sample + 4, of_sample + 20, to_mix + 16 * n);
  }
  if (to_gamma) *to_gamma = static_cast<float>(terms.back());
}

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, m) {
  m.def(
      "raw_conv_forward(Tensor mosaic, Tensor weight, Tensor? bias, Tensor black, Tensor white, "
      "Tensor pattern, Tensor gain, Tensor? padding_value, Tensor? mix, Tensor? gamma, "
      "Tensor? linearise, int stride, int left, int right, int top, int bottom, bool clip, int curve, int activation, int packing, "
      "int pixels, Tensor(a!) out) -> ()");
  m.def(
      "raw_conv_backward(Tensor grad_out, Tensor? out, Tensor mosaic, Tensor weight, Tensor? bias, "
      "Tensor black, Tensor white, Tensor pattern, Tensor gain, Tensor? padding_value, Tensor? mix, "
      "Tensor? gamma, Tensor? linearise, int stride, int left, int right, int top, int bottom, bool clip, int curve, "
      "int activation, int packing, int pixels, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, "
      "Tensor(c!)? grad_gain, Tensor(d!)? grad_mix, Tensor(e!)? grad_gamma) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, m) {
  m.impl("raw_conv_forward", TORCH_BOX(&raw_conv_forward));
  m.impl("raw_conv_backward", TORCH_BOX(&raw_conv_backward));
}

}  // namespace
}  // namespace isp_distill
