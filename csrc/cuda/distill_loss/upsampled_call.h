// One call of the distillation loss at full resolution of low-resolution logits, as its CUDA kernels
// see it, and how they share it out. A low-resolution position is a cell, a full-resolution one a
// pixel; the pixels between four cells, which are interpolated from them, are a patch, numbered as its
// upper left cell.
#pragma once

#include "cuda/distill_loss/call.h"

#ifdef __CUDACC__
#define ISP_AXIS __host__ __device__ __forceinline__
#else
#define ISP_AXIS inline
#endif

namespace isp_distill::cuda {

// Where torch.nn.functional.interpolate(mode="bilinear") takes pixel i of an axis from: the coordinate
// max(slope i + offset, 0) / divisor, in integers, cut off at the last cell.
struct Axis {
  int cells, pixels, slope, offset, divisor;
};

struct Source {
  int cell;     // in [cell] (1 - share) + in [cell + 1] share
  float share;  // 0 where there is no next cell
};

ISP_AXIS Source source_of(const Axis& axis, int pixel) {
  const int at = pixel * axis.slope + axis.offset, numerator = at > 0 ? at : 0;
  const int cell = numerator / axis.divisor;
  if (cell >= axis.cells - 1) return {axis.cells - 1, 0.0f};
  return {cell, static_cast<float>(numerator - cell * axis.divisor) / static_cast<float>(axis.divisor)};
}

// The first pixel that lies at a cell or beyond it.
ISP_AXIS int first_pixel(const Axis& axis, int cell) {
  if (cell <= 0) return 0;
  if (cell >= axis.cells) return axis.pixels;
  const int numerator = cell * axis.divisor - axis.offset;
  const int pixel = numerator <= 0 ? 0 : (numerator + axis.slope - 1) / axis.slope;
  return pixel < axis.pixels ? pixel : axis.pixels;
}

// False where the products above do not fit 32 bits.
inline bool make_axis(int64_t cells, int64_t pixels, bool align_corners, Axis& axis) {
  int64_t slope = 2 * cells, offset = cells - pixels, divisor = 2 * pixels;
  if (align_corners) slope = cells - 1, offset = 0, divisor = pixels - 1;
  // Every pixel is the first cell: none gets as far as a second.
  if (slope == 0 || divisor == 0) slope = 1, offset = 0, divisor = pixels + 1;
  const int64_t most = int64_t{1} << 31, beside = offset < 0 ? -offset : offset;
  // A thread may look a few rows beyond the last.
  if (slope * (pixels + 4) + beside >= most || divisor * (cells + 2) + beside >= most) return false;
  axis = {static_cast<int>(cells), static_cast<int>(pixels), static_cast<int>(slope),
          static_cast<int>(offset), static_cast<int>(divisor)};
  return true;
}

// Cells that `pixels` neighbours are interpolated from, at most.
inline int64_t cells_of(const Axis& axis, int64_t pixels) {
  const int64_t cells = (pixels - 1) * axis.slope / axis.divisor + 3;
  return cells < axis.cells ? cells : axis.cells;
}

// Pixels of `patches` neighbours, at most: beside the first cell there are some that lie before it.
inline int64_t pixels_of(const Axis& axis, int64_t patches) {
  const int64_t before = axis.offset < 0 ? -axis.offset : 0;
  const int64_t pixels = (patches * axis.divisor + before) / axis.slope + 2;
  return pixels < axis.pixels ? pixels : axis.pixels;
}

inline constexpr int kRows = 4;        // pixels that a thread has below each other
inline constexpr int kBatch = 4;       // classes that it looks at before it moves its maxima
inline constexpr int kOwnClasses = 4;  // of a thread that adds up the gradient
inline constexpr int kUpsampledShared = 48 << 10;
inline constexpr int kResidentBlocks = 256;  // two on each multiprocessor of a large GPU

// How the pixels, then how the cells are shared out. Bytes are of shared memory.
struct PixelTiles {
  int width, tiles;   // pixels of a block beside each other, blocks in a row
  int strips, phase;  // of kRows rows, the first of which begins `phase` rows above the image
  int classes;        // that are in shared memory at a time
  int cells[2], pitch[2];  // student's and teacher's: cells of a row, bytes of a class's raw cells
  int bytes;
};
struct CellTiles {
  int width, tiles;    // cells of a block beside each other, blocks in a row
  int height, bands;   // rows of cells of a block, blocks below each other
  int lanes, chunks;   // classes of a block are kOwnClasses * lanes; blocks for all classes
  int threads, columns;  // columns: of pixels, at most
  int pitch[2];
  int bytes;
};

struct UpsampledLoss {
  LossCall call;  // its rows are the pixels; the strides of its logits are those of [N, C, h, w]
  Logits maps[2];  // student and teacher once more, to be chosen by number
  int batch, height, width;
  Axis y[2], x[2];  // the student's, the teacher's
  float* numbers;   // [batch, height, width, words]: what the gradient needs of a pixel
  int words;
  PixelTiles pixels;
  CellTiles cells;
};

ISP_AXIS int up_to_batch(int classes) { return (classes + kBatch - 1) / kBatch * kBatch; }
inline int up_to(int64_t value, int64_t unit) {
  return static_cast<int>((value + unit - 1) / unit * unit);
}
inline int parts_of(int64_t whole, int64_t part) { return static_cast<int>((whole + part - 1) / part); }

// Of a class's cells: they begin anywhere in a vector of 16 bytes.
inline int pitch_of(const Logits& logits, int64_t cells) {
  return up_to(cells * (logits.dtype == Dtype::float32 ? 4 : 2) + 15, 16);
}

// As wide as wastes few threads, and 128 where that makes no difference; as many classes at a time as
// fit, 16 at most.
inline bool plan_pixels(UpsampledLoss& up) {
  PixelTiles best = {};
  for (int width : {128, 192, 96, 160, 256, 224, 64, 32}) {
    PixelTiles p = {};
    p.width = width, p.tiles = parts_of(up.width, width);
    if (best.width && 100 * int64_t(p.tiles) * width >= 92 * int64_t(best.tiles) * best.width) continue;
    for (int m = 0; m < 2; ++m) {
      const int64_t cells = cells_of(up.x[m], width < up.width ? width : up.width);
      p.cells[m] = static_cast<int>(cells), p.pitch[m] = pitch_of(up.maps[m], cells);
    }
    const int64_t raw = 2 * int64_t(p.pitch[0] + p.pitch[1]);
    const int64_t of_class = raw + 16 * int64_t(p.cells[0] + p.cells[1]);
    const int64_t most = (kUpsampledShared - 256) / of_class / kBatch * kBatch;
    p.classes = static_cast<int>(most < 16 ? most : 16);
    const int wanted = up_to(up.call.classes < 16 ? up.call.classes : 16, kBatch);
    if (wanted < p.classes) p.classes = wanted;
    p.bytes = 256 + static_cast<int>(p.classes * of_class);
    if (p.classes > 0) best = p;
  }
  // Strips begin where the first cell's patch ends, so that with a ratio of kRows each is in one patch.
  best.phase = (kRows - first_pixel(up.y[0], 1) % kRows) % kRows;
  best.strips = parts_of(up.height + best.phase, kRows);
  up.pixels = best;
  return best.width > 0;
}

// The tile that leaves the fewest threads without work: those beyond the last cell or class, and those
// of the patches that two tiles compute.
inline bool plan_cells(UpsampledLoss& up) {
  const int across = up.x[0].cells, down = up.y[0].cells;
  const int64_t pairs = parts_of(up.call.classes, kOwnClasses);
  CellTiles best = {};
  int64_t least = 0;
  for (int tiles = 1, last = 0; tiles <= across; ++tiles) {
    CellTiles c = {};
    c.width = parts_of(across, tiles), c.tiles = parts_of(across, c.width);
    if (c.width == last || c.width > 127) continue;
    if (c.width < 8 && best.width) break;
    last = c.width;
    const int64_t most = kLossThreads / (c.width + 1);
    c.lanes = parts_of(pairs, parts_of(pairs, most));
    c.columns = static_cast<int>(pixels_of(up.x[0], c.width + 1));
    c.pitch[0] = pitch_of(up.maps[0], c.width + 2 < across ? c.width + 2 : across);
    c.pitch[1] = pitch_of(up.maps[1], cells_of(up.x[1], c.columns));
    const auto bytes = [&] {
      const int64_t classes = kOwnClasses * c.lanes;
      return 16 * int64_t(c.columns) + 3 * classes * (c.pitch[0] + c.pitch[1]) +
             8 * int64_t(c.width + 1) * (classes + 1);
    };
    while (c.lanes > 1 && bytes() > kUpsampledShared) c.lanes /= 2;
    if (bytes() > kUpsampledShared) continue;
    c.bytes = static_cast<int>(bytes());
    c.chunks = parts_of(pairs, c.lanes), c.threads = up_to((c.width + 1) * c.lanes, 32);
    const int64_t threads = int64_t(c.tiles) * c.chunks * c.threads;
    if (best.width && threads >= least) continue;
    best = c, least = threads;
  }
  if (best.width == 0) return false;
  // Each band computes the row of patches above it as well; the last blocks to run leave a GPU half
  // empty.
  int64_t shortest = 0;
  for (int height = 2; height <= 64; ++height) {
    const int bands = parts_of(down, height);
    const int64_t blocks = int64_t(up.batch) * best.tiles * best.chunks * bands;
    const int64_t time = (height + 1) * int64_t(parts_of(blocks, kResidentBlocks));
    if (shortest == 0 || time < shortest) shortest = time, best.height = height, best.bands = bands;
  }
  up.cells = best;
  return true;
}

// Blocks of each kernel.
inline int64_t pixel_blocks(const UpsampledLoss& up) {
  return int64_t(up.batch) * up.pixels.strips * up.pixels.tiles;
}
inline int64_t cell_blocks(const UpsampledLoss& up) {
  return int64_t(up.batch) * up.cells.bands * up.cells.tiles * up.cells.chunks;
}

// Fills in what follows from the rest: sizes of both maps, full resolution, logits. False where an
// axis is too long or a tile does not fit shared memory.
inline bool plan_upsampled(UpsampledLoss& up, const int64_t (&student)[2], const int64_t (&teacher)[2],
                           bool align_corners, Objective objective) {
  up.maps[0] = up.call.student, up.maps[1] = up.call.teacher;
  up.words = 4 * (1 + (objective == Objective::jsd) + up.call.cross_entropy);
  return make_axis(student[0], up.height, align_corners, up.y[0]) &&
         make_axis(student[1], up.width, align_corners, up.x[0]) &&
         make_axis(teacher[0], up.height, align_corners, up.y[1]) &&
         make_axis(teacher[1], up.width, align_corners, up.x[1]) && plan_pixels(up) && plan_cells(up);
}

}  // namespace isp_distill::cuda
