// The gradient of low-resolution logits, from what upsampled_pixels.h left of each pixel.
//
// A gather: a block has a tile of cells for some classes and goes through every pixel of every patch
// that touches one of them. A thread has a column of patches, from the top of the tile to its bottom,
// for four classes; its neighbours in the warp have the next classes of the same patches, so that a
// pixel's numbers are one broadcast load. It holds the four cells of the student around its patch in
// registers, so that a pixel costs no loads of logits but a multiply-add, and it adds up what each of
// the four gets from the patch. Below a row of patches it hands over the sums to the right and left of
// the row that is complete; added up through shared memory, they are written once.
//
// The patches at the rim of a tile are computed by the tile beyond as well (plan_cells weighs that),
// which costs a few percent and keeps the sum of each cell in one block: in an order that never
// changes. The rows of both maps are on their way (asynchronously) while the row above them is
// computed.
#pragma once

#include "cuda/distill_loss/upsampled_rows.h"

namespace isp_distill::cuda {

// Where a column of pixels comes from: the student's share, the teacher's cell and share.
ISP_DEVICE Four column_of(const UpsampledLoss& up, int x) {
  const Source of_s = source_of(up.x[0], x), of_t = source_of(up.x[1], x);
  return {{bits_of(of_s.share), static_cast<uint32_t>(of_t.cell), bits_of(of_t.share), 0}};
}

// The numbers that leave_numbers left.
template <Objective O, bool Labels>
ISP_DEVICE Row row_of(const float* from, const Four& four) {
  Row row;
  row.top_t = float_of(four.word[0]), row.top_s = row.best_s = float_of(four.word[1]);
  row.a = float_of(four.word[2]), row.b = float_of(four.word[3]);
  if constexpr (O == Objective::jsd) {
    const Four more = load_as<Four>(from += 4);
    row.c = float_of(more.word[0]), row.d = float_of(more.word[1]);
  }
  if constexpr (Labels) {
    const Four more = load_as<Four>(from + 4);
    row.label_scale = float_of(more.word[0]), row.label_weight = float_of(more.word[1]);
    row.label = static_cast<int>(more.word[2]);
  }
  return row;
}

// `Labels`: whether there is cross entropy.
template <Objective O, bool Labels>
ISP_KERNEL(2) upsampled_cells(ISP_CONSTANT UpsampledLoss up) {
  constexpr int V = kOwnClasses;
  const LossCall& call = up.call;
  const CellTiles& tiles = up.cells;
  char* memory = shared_memory();
  const int thread = static_cast<int>(threadIdx.x), threads = tiles.threads;
  int64_t rest = blockIdx.x;
  const int begin_x = static_cast<int>(rest % tiles.tiles) * tiles.width;
  rest /= tiles.tiles;
  const int first = static_cast<int>(rest % tiles.chunks) * tiles.lanes * V;
  rest /= tiles.chunks;
  const int begin_y = static_cast<int>(rest % tiles.bands) * tiles.height;
  const int64_t n = rest / tiles.bands;
  const int across = up.x[0].cells, down = up.y[0].cells;
  const int end_x = begin_x + tiles.width < across ? begin_x + tiles.width : across;
  const int end_y = begin_y + tiles.height < down ? begin_y + tiles.height : down;
  const int left = static_cast<int>(call.classes) - first;
  const int classes = left < tiles.lanes * V ? left : tiles.lanes * V;

  // This thread's patch lies to the right of cell `patch`; its classes are lane + v lanes.
  const int column = thread / tiles.lanes, lane = thread % tiles.lanes;
  const int patch = begin_x - 1 + column;
  const bool works = column <= tiles.width && patch >= 0 && patch < end_x;
  const int next = patch + 1 < across ? patch + 1 : patch;

  // Columns of pixels, then both maps' rows, then the sums that are handed over.
  const int pixel_begin = first_pixel(up.x[0], begin_x - 1), pixel_end = first_pixel(up.x[0], end_x);
  Four* const columns = reinterpret_cast<Four*>(memory);
  for (int i = thread; i < pixel_end - pixel_begin; i += threads) {
    columns[i] = column_of(up, pixel_begin + i);
  }
  const int cells_begin = begin_x > 0 ? begin_x - 1 : 0;
  const int cells_end = end_x < across ? end_x + 1 : across;
  const int last_pixel = pixel_end > pixel_begin ? pixel_end - 1 : pixel_begin;
  const int teacher_begin = source_of(up.x[1], pixel_begin).cell;
  const int teacher_last = source_of(up.x[1], last_pixel).cell;
  const int teacher_end = teacher_last + 1 < up.x[1].cells ? teacher_last + 2 : up.x[1].cells;
  char* const rows_s = memory + 16 * tiles.columns;
  char* const rows_t = rows_s + 3 * V * tiles.lanes * tiles.pitch[0];
  Rows student(call.student,
               {n, cells_begin, cells_end - cells_begin, first, classes, tiles.pitch[0]}, down,
               threads, rows_s);
  Rows teacher(call.teacher,
               {n, teacher_begin, teacher_end - teacher_begin, first, classes, tiles.pitch[1]},
               up.y[1].cells, threads, rows_t);
  float* const sums = reinterpret_cast<float*>(rows_t + 3 * V * tiles.lanes * tiles.pitch[1]);
  const int sums_pitch = V * tiles.lanes + 1;  // of a patch: neighbours in different banks

  const int x_begin = works ? first_pixel(up.x[0], patch) : 0;
  const int x_end = works ? first_pixel(up.x[0], patch + 1) : 0;
  float upper[V][2] = {}, lower[V][2] = {};  // sums of the patch's left and right cells
  for (int row = begin_y > 0 ? begin_y - 1 : 0; row < end_y; ++row) {
    student.reach(row);
    float corners[2][V][2];
    ISP_UNROLL for (int i = 0; i < 2; ++i) {
      const int at = row + i < down ? row + i : row;
      ISP_UNROLL for (int v = 0; v < V; ++v) {
        const int k = lane + v * tiles.lanes;
        const bool there = works && k < classes;
        corners[i][v][0] = there ? student.value(at, k, patch) : 0.0f;
        corners[i][v][1] = there ? student.value(at, k, next) : 0.0f;
      }
    }
    const int y_end = first_pixel(up.y[0], row + 1);
    for (int y = first_pixel(up.y[0], row); y < y_end; ++y) {
      const Source of_t = source_of(up.y[1], y);
      const float share_y = source_of(up.y[0], y).share;
      teacher.reach(of_t.cell);
      float s_left[V], s_step[V], t_left[V] = {}, t_step[V] = {};
      ISP_UNROLL for (int v = 0; v < V; ++v) {
        s_left[v] = corners[0][v][0] + share_y * (corners[1][v][0] - corners[0][v][0]);
        s_step[v] = corners[0][v][1] + share_y * (corners[1][v][1] - corners[0][v][1]) - s_left[v];
      }
      float all[V] = {}, right[V] = {};
      int held = -1;
      const float* own = up.numbers + ((n * up.height + y) * up.width + x_begin) * up.words;
      Four four = {};
      if (x_begin < x_end) four = load_as<Four>(own);
      ISP_ROLLED for (int x = x_begin; x < x_end; ++x) {
        const Four now = four;
        const float* numbers = own;
        own += up.words;
        if (x + 1 < x_end) four = load_as<Four>(own);
        if (float_of(now.word[0]) == minus_infinity()) continue;
        const Four where = columns[x - pixel_begin];
        const int cell = static_cast<int>(where.word[1]);
        const float share_s = float_of(where.word[0]), share_t = float_of(where.word[2]);
        if (cell != held) {
          held = cell;
          const int beside = cell + 1 < up.x[1].cells ? cell + 1 : cell;
          const int below = of_t.cell + 1 < up.y[1].cells ? of_t.cell + 1 : of_t.cell;
          const int own_lane = anew(lane);
          ISP_UNROLL for (int v = 0; v < V; ++v) {
            const int k = own_lane + v * tiles.lanes < classes ? own_lane + v * tiles.lanes : 0;
            const float a = teacher.value(of_t.cell, k, cell), b = teacher.value(of_t.cell, k, beside);
            t_left[v] = a + of_t.share * (teacher.value(below, k, cell) - a);
            t_step[v] = b + of_t.share * (teacher.value(below, k, beside) - b) - t_left[v];
          }
        }
        const Row pixel = row_of<O, Labels>(numbers, now);
        ISP_UNROLL for (int v = 0; v < V; ++v) {
          const float g = gradient_of<O, Labels>(pixel, s_left[v] + share_s * s_step[v],
                                         t_left[v] + share_t * t_step[v],
                                         first + lane + v * tiles.lanes, call);
          all[v] += g, right[v] += share_s * g;
        }
      }
      ISP_UNROLL for (int v = 0; v < V; ++v) {
        const float parts[2] = {all[v] - right[v], right[v]};
        ISP_UNROLL for (int i = 0; i < 2; ++i) {
          upper[v][i] += (1 - share_y) * parts[i], lower[v][i] += share_y * parts[i];
        }
      }
    }
    // Cell (row, x) is complete: it gets the right sum of patch x - 1 and the left one of patch x.
    if (row >= begin_y) {
      if (column <= tiles.width) {
        ISP_UNROLL for (int v = 0; v < V; ++v) {
          float* to = sums + 2 * column * sums_pitch + lane + v * tiles.lanes;
          to[0] = upper[v][0], to[sums_pitch] = upper[v][1];
        }
      }
      __syncthreads();
      const int64_t start = n * call.gradient.stride_n + row * call.gradient.stride_a;
      const auto write = [&](int k, int i) {
        const float* from = sums + 2 * i * sums_pitch + k;
        const int64_t at = (first + k) * call.gradient.stride_class +
                           (begin_x + i) * call.gradient.stride_b;
        store_one(call.gradient, start + at, from[sums_pitch] + from[2 * sums_pitch]);
      };
      if (call.gradient.stride_class == 1) {
        share_out(end_x - begin_x, classes, threads, [&](int i, int k) { write(k, i); });
      } else {
        share_out(classes, end_x - begin_x, threads, write);
      }
    }
    ISP_UNROLL for (int v = 0; v < V; ++v) {
      ISP_UNROLL for (int i = 0; i < 2; ++i) upper[v][i] = lower[v][i], lower[v][i] = 0;
    }
  }
  wait_copies<0>();
}

}  // namespace isp_distill::cuda
