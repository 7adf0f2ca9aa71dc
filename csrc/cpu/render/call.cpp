// The operator isp_distill_cpu::render: checks the arguments, makes the tables, cuts the picture into
// pieces, and runs the kernels of this processor's instruction set on torch's threads.
#include "cpu/render/call.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/render/tables.h"
#include "cpu/workspace.h"

namespace isp_distill {

ISP_DISTILL_DECLARE_KERNEL(
    render_sizes,
    (const Render&, int64_t source_columns, int64_t columns, int64_t* workspace))
ISP_DISTILL_DECLARE_KERNEL(render, (const Render&, const RenderPiece&, float* workspace))
ISP_DISTILL_DECLARE_KERNEL(
    render_folded_sizes,
    (const Render&, int64_t source_columns, int64_t columns, int64_t* workspace))
ISP_DISTILL_DECLARE_KERNEL(render_folded, (const Render&, const RenderPiece&, float* workspace))
ISP_DISTILL_DECLARE_KERNEL(
    render_unresized_sizes,
    (const Render&, int64_t source_columns, int64_t columns, int64_t* workspace))
ISP_DISTILL_DECLARE_KERNEL(render_unresized, (const Render&, const RenderPiece&, float* workspace))

namespace {

using torch::stable::Tensor;

// Where element (0, 0) of the picture, as the sensor sees it, goes, and the steps from there. `picture`
// is [N, 3, h, w], upright. EXIF orientations 5 to 8 exchange the axes; which of the picture's axes run
// backwards follows isp_distill/ops/reference.py, orient().
void turn_upright(const Tensor& picture, int64_t orientation, Render* r) {
  const bool transposed = orientation >= 5;
  const bool upside_down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool mirrored = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  int64_t down = picture.stride(2), across = picture.stride(3), start = 0;
  if (upside_down) {
    start += (picture.size(2) - 1) * down;
    down = -down;
  }
  if (mirrored) {
    start += (picture.size(3) - 1) * across;
    across = -across;
  }
  r->out_row = transposed ? across : down;
  r->out_column = transposed ? down : across;
  r->out_sample = picture.stride(0);
  r->out_channel = picture.stride(1);
  r->out = static_cast<char*>(picture.data_ptr()) + start * picture.element_size();
}

// The rows of a tile of so many sensor columns fit the second-level cache, 0.4 MB for 4096. Narrower
// tiles, for the first-level cache, were slower: memory likes long rows better.
constexpr int64_t kTileColumns = 4096;
// Neighbouring pieces both develop the rows and columns that lie in the support of both.
constexpr int64_t kLeast = 8;

std::vector<RenderPiece> pieces_of(const Render& r, int64_t batch) {
  const int64_t height = r.rows.target, width = r.columns.target;
  const auto within = [](int64_t wanted, int64_t length) {
    return std::max<int64_t>(std::min(wanted, length / kLeast), 1);
  };
  const int64_t widest = std::max(r.columns.source, width);
  const int64_t tiles = within((widest + kTileColumns - 1) / kTileColumns, width);
  // Enough to even out the threads' shares; neighbouring bands read the rows between them twice.
  const int64_t wanted = 2 * torch::stable::get_num_threads();
  const int64_t bands = within((wanted + batch * tiles - 1) / std::max<int64_t>(batch * tiles, 1), height);
  std::vector<RenderPiece> pieces;
  pieces.reserve(batch * tiles * bands);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t band = 0; band < bands; ++band) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        pieces.push_back({n, height * band / bands, height * (band + 1) / bands,
                          width * tile / tiles, width * (tile + 1) / tiles});
      }
    }
  }
  return pieces;
}

// Whether sensor values and black levels are integers of 16 bits, and the steps from black to where
// the sensor is clipped fewer than 2^15.
bool are_whole(const Render& r, int64_t batch) {
  if (r.mosaic_type != Element::uint16 || r.companding.tables) return false;
  for (int64_t i = 0; i < 4 * batch; ++i) {
    const float black = r.black[i], steps = 1.0f / r.scale[i];
    if (!(black >= 0 && black <= 65535 && black == std::floor(black))) return false;
    if (!(steps >= 1 && steps < 32768)) return false;
  }
  return true;
}

// Pictures of more bytes than this do not stay in a cache anyway.
constexpr int64_t kStreamingBytes = 16 << 20;

void render_picture(
    Tensor mosaic, Tensor black, Tensor white, Tensor pattern, Tensor gain, Tensor ccm, Tensor mean,
    Tensor std, std::optional<Tensor> linearise, int64_t demosaic, int64_t tone, int64_t orientation,
    int64_t top, int64_t left, int64_t crop_height, int64_t crop_width, bool resize_linear,
    int64_t packing, int64_t pixels, Tensor out) {
  Render r = {};
  STD_TORCH_CHECK(mosaic.is_cpu() && mosaic.dim() == 3, "mosaic must be [N, H, W] on the CPU");
  const int64_t batch = mosaic.size(0);
  r.height = mosaic.size(1);
  r.width = pixels;
  STD_TORCH_CHECK(r.height % 2 == 0, "odd mosaic");
  STD_TORCH_CHECK(mosaic.stride(2) == 1, "the rows of the mosaic must be contiguous");
  r.mosaic = mosaic.data_ptr();
  r.packing = packing_of(mosaic, packing, pixels);
  r.mosaic_type = r.packing == Packing::none ? element_of(mosaic, "mosaic") : Element::uint16;
  STD_TORCH_CHECK(
      r.mosaic_type != Element::bfloat16 && r.mosaic_type != Element::float64,
      "mosaic must not be bfloat16 or float64");
  r.companding = companding_of(linearise, batch, r.mosaic_type);
  r.mosaic_sample = mosaic.stride(0);
  r.mosaic_row = mosaic.stride(1);

  r.black = floats(black, {batch, 4}, "black");
  const float* whites = floats(white, {batch}, "white");
  const float* gains = floats(gain, {batch, 4}, "gain");
  std::vector<float> identities;
  if (ccm.dim() == 3 && ccm.size(2) == 4) {
    r.planes = floats(ccm, {batch, 3, 4}, "ccm");
    identities.resize(9 * batch);
    for (int64_t n = 0; n < batch; ++n) {
      for (int c = 0; c < 3; ++c) identities[9 * n + 4 * c] = 1.0f;
    }
    r.ccm = identities.data();
  } else {
    r.ccm = floats(ccm, {batch, 3, 3}, "ccm");
  }
  STD_TORCH_CHECK(
      pattern.is_cpu() && pattern.scalar_type() == torch::headeronly::ScalarType::Long &&
          pattern.is_contiguous() && pattern.numel() == batch,
      "pattern must be int64 [N]");
  r.pattern = static_cast<const int64_t*>(pattern.data_ptr());
  std::vector<float> scale(4 * batch);
  for (int64_t i = 0; i < 4 * batch; ++i) scale[i] = gains[i] / (whites[i / 4] - r.black[i]);
  r.scale = scale.data();
  const float *means = floats(mean, {3}, "mean"), *stds = floats(std, {3}, "std");
  for (int c = 0; c < 3; ++c) {
    r.slope[c] = 1.0f / stds[c];
    r.offset[c] = -means[c] / stds[c];
  }

  STD_TORCH_CHECK(demosaic >= 0 && demosaic <= 3, "unknown demosaic");
  STD_TORCH_CHECK(tone >= 0 && tone <= 4, "unknown tone");
  STD_TORCH_CHECK(orientation >= 1 && orientation <= 8, "no EXIF orientation");
  r.demosaic = static_cast<Demosaic>(demosaic);
  r.tone = static_cast<Tone>(tone);
  r.resize_linear = resize_linear;
  const std::vector<float> curve = tone_table(r.tone);
  r.curve = curve.data();
  STD_TORCH_CHECK(
      top >= 0 && left >= 0 && crop_height > 0 && crop_width > 0 && crop_height <= r.height - top &&
          crop_width <= r.width - left,
      "the crop reaches beyond the mosaic");
  const bool superpixel = r.demosaic == Demosaic::superpixel;
  STD_TORCH_CHECK(
      superpixel || r.planes == nullptr, "four colours are rendered by superpixel alone");
  STD_TORCH_CHECK(
      !superpixel || (top | left | crop_height | crop_width) % 2 == 0,
      "superpixel demosaicing takes even crops");
  r.top = top;
  r.left = left;

  STD_TORCH_CHECK(
      out.is_cpu() && out.dim() == 4 && out.size(0) == batch && out.size(1) == 3 && out.size(2) > 0 &&
          out.size(3) > 0,
      "out must be [N, 3, h, w] on the CPU");
  r.out_type = element_of(out, "out");
  STD_TORCH_CHECK(
      r.out_type == Element::float32 || r.out_type == Element::float16 ||
          r.out_type == Element::bfloat16,
      "out must be float32, bfloat16 or float16");
  turn_upright(out, orientation, &r);
  const bool transposed = orientation >= 5;
  const TapsTable rows(superpixel ? crop_height / 2 : crop_height, out.size(transposed ? 3 : 2));
  const TapsTable columns(superpixel ? crop_width / 2 : crop_width, out.size(transposed ? 2 : 3));
  r.rows = rows.view();
  r.columns = columns.view();
  // Only where the picture is lower are there fewer sums than sensor rows.
  std::optional<SegmentsTable> segments;
  std::optional<FoldedTable> folded_rows;
  if (resize_linear && rows.target < rows.source) {
    segments.emplace(rows, r.demosaic, top, are_whole(r, batch));
    r.segments = segments->view();
    folded_rows.emplace(rows, r.demosaic, top, r.height, r.segments);
    r.folded = folded_rows->view();
  }
  r.streaming = out.numel() * out.element_size() > kStreamingBytes;
  if (batch == 0) return;
  if (r.streaming) advise_huge_pages(out);

  const std::vector<RenderPiece> pieces = pieces_of(r, batch);
  int64_t most_source = 0, most_columns = 0, workspace = 0;
  for (const RenderPiece& p : pieces) {
    most_source = std::max(most_source, columns.end[p.column_end - 1] - columns.begin[p.column_begin]);
    most_columns = std::max(most_columns, p.column_end - p.column_begin);
  }
  auto sizes = ISP_DISTILL_KERNEL(render_sizes);
  auto run = ISP_DISTILL_KERNEL(render);
  if (folded_rows) {
    sizes = ISP_DISTILL_KERNEL(render_folded_sizes);
    run = ISP_DISTILL_KERNEL(render_folded);
  } else if (r.rows.identity && r.columns.identity && r.out_column == 1 && !superpixel) {
    sizes = ISP_DISTILL_KERNEL(render_unresized_sizes);
    run = ISP_DISTILL_KERNEL(render_unresized);
  }
  sizes(r, most_source, most_columns, &workspace);
  for_each(static_cast<int64_t>(pieces.size()), workspace,
           [&](int64_t i, float* memory) { run(r, pieces[i], memory); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(isp_distill_cpu, m) {
  m.def(
      "render(Tensor mosaic, Tensor black, Tensor white, Tensor pattern, Tensor gain, Tensor ccm, "
      "Tensor mean, Tensor std, Tensor? linearise, int demosaic, int tone, int orientation, int top, int left, "
      "int crop_height, int crop_width, bool resize_linear, int packing, int pixels, "
      "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(isp_distill_cpu, CPU, m) { m.impl("render", TORCH_BOX(&render_picture)); }

}  // namespace
}  // namespace isp_distill
