// Rows of low-resolution logits on their way through shared memory, for distill_upsampled_*.h.
//
// A row lies there as it lies in global memory, a line for each class, so that asynchronous copies
// bring it, of 16 bytes where cells are neighbours. Lines begin at a multiple of 16 bytes and the cells
// anywhere in the first 16: as in global memory.
#pragma once

#include "cuda/distill_loss/memory.h"
#include "cuda/distill_loss/upsampled_call.h"

namespace isp_distill::cuda {

// Rules a class out, and survives interpolation, where -inf times a weight of 0 would not.
inline constexpr float kRuledOut = -1e38f;

ISP_DEVICE float cell_value(float x) { return x < kRuledOut ? kRuledOut : x; }

// The numbers below `outer` times the numbers below `inner`, taken in turn by the block's threads.
template <class Visit>
ISP_DEVICE void share_out(int outer, int inner, int threads, const Visit& visit) {
  int i = static_cast<int>(threadIdx.x) / inner, j = static_cast<int>(threadIdx.x) % inner;
  const int step_i = threads / inner, step_j = threads % inner;
  while (i < outer) {
    visit(i, j);
    i += step_i, j += step_j;
    if (j >= inner) j -= inner, ++i;
  }
}

// Neighbouring cells of one sample's map, and some of its classes.
struct Window {
  int64_t n;
  int begin, count;   // cells
  int first, classes;
  int pitch;          // bytes of a line
};

ISP_DEVICE int64_t offset_of(const Logits& logits, const Window& window, int row, int k) {
  return window.n * logits.stride_n + row * logits.stride_a + window.begin * logits.stride_b +
         (window.first + k) * logits.stride_class;
}

// Asks for the lines of `row` and, behind them, for those of `next` if it is another: they are there
// after wait_copies and a barrier.
ISP_DEVICE void ask(const Logits& logits, const Window& window, int row, int next, char* to,
                    int threads) {
  const int size = static_cast<int>(item(logits.dtype));
  const int lines = (next == row ? 1 : 2) * window.classes;
  const auto from = [&](int line) {
    const bool behind = line >= window.classes;
    return logits.data +
           offset_of(logits, window, behind ? next : row, behind ? line - window.classes : line) * size;
  };
  if (logits.stride_b == 1) {
    share_out(lines, window.pitch / 16, threads, [&](int line, int vector) {
      const char* begin = from(line);
      const char* end = begin + window.count * size;
      begin += 16 * vector - static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16);
      const int64_t bytes = end - begin;
      if (bytes <= 0) return;
      copy_16(to + line * window.pitch + 16 * vector, begin, static_cast<int>(bytes < 16 ? bytes : 16));
    });
    return;
  }
  // Neighbouring threads take neighbours in memory where classes are.
  const bool turned = logits.stride_class == 1;
  share_out(turned ? window.count : lines, turned ? lines : window.count, threads, [&](int i, int j) {
    const int line = turned ? j : i, x = turned ? i : j;
    const char* cell = from(line) + x * logits.stride_b * size;
    char* place = to + line * window.pitch + x * size;
    if (size == 4) return store_as(place, load_as<uint32_t>(cell));
    store_as(place, load_as<uint16_t>(cell));
  });
}

// Where the cells of class k begin in the lines that were asked for as `to`.
ISP_DEVICE const char* line_of(const Logits& logits, const Window& window, int row, int k,
                               const char* to) {
  to += k * window.pitch;
  if (logits.stride_b != 1) return to;
  const uint32_t elements = static_cast<uint32_t>(offset_of(logits, window, row, k));
  const uint32_t low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(logits.data));
  return to + (low + elements * static_cast<uint32_t>(item(logits.dtype))) % 16;
}
ISP_DEVICE float cell_at(const Logits& logits, const char* line, int x) {
  if (logits.dtype == Dtype::float32) return cell_value(load_as<float>(line + 4 * x));
  const uint16_t bits = load_as<uint16_t>(line + 2 * x);
  return cell_value(logits.dtype == Dtype::bfloat16 ? from_bfloat16(bits) : from_float16(bits));
}

// Two neighbouring rows of a window, and the next one on its way, as a block goes down the map.
struct Rows {
  const Logits& logits;
  const Window window;
  const int height, threads;
  char* const memory;      // three rows
  int at = -1, asked = 0;  // the upper one; rows before this one were asked for, from `at` on

  ISP_DEVICE Rows(const Logits& logits, const Window& window, int height, int threads, char* memory)
      : logits(logits), window(window), height(height), threads(threads), memory(memory) {}

  ISP_DEVICE char* slot(int row) const {
    return memory + row % 3 * (window.classes * window.pitch);
  }
  ISP_DEVICE float value(int row, int k, int x) const {
    return cell_at(logits, line_of(logits, window, row, k, slot(row)), x - window.begin);
  }

  // Rows `row` and the next one are there afterwards. All threads come here with the same row.
  ISP_DEVICE void reach(int row) {
    if (row == at) return;
    at = row;
    // First, if they were not asked for ahead, these two, then the one after them.
    ISP_ROLLED for (int ahead = row + 1 < asked; ahead < 2; ++ahead) {
      wait_copies<0>();
      __syncthreads();
      const int begin = ahead ? row + 2 : asked > row ? asked : row, end = ahead ? row + 2 : row + 1;
      ISP_ROLLED for (int next = begin; next <= end; ++next) {
        if (next < height) ask(logits, window, next, next, slot(next), threads);
      }
      commit_copies();
      asked = end + 1;
    }
  }
};

}  // namespace isp_distill::cuda
