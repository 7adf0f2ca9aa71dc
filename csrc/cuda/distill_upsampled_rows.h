// Rows of low-resolution logits on their way through shared memory, for distill_upsampled_*.h.
//
// A row lies there as it lies in global memory, a line for each class, so that asynchronous copies bring
// it, of 16 bytes where cells are neighbours. Lines begin at a multiple of 16 bytes and the cells
// anywhere in the first 16: as in global memory.
#pragma once

#include "cuda/distill_memory.h"
#include "cuda/distill_upsampled_call.h"

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

// Neighbouring cells of a sample's map, and of each row of them a block's classes.
struct Window {
  const Logits& logits;
  int64_t start;  // of the first cell in row 0 and class 0, in elements
  int begin, count, pitch;

  ISP_DEVICE Window(const Logits& logits, int64_t n, int begin, int count, int pitch)
      : logits(logits), start(n * logits.stride_n + begin * logits.stride_b), begin(begin),
        count(count), pitch(pitch) {}

  ISP_DEVICE int64_t offset(int row, int index) const {
    return start + row * logits.stride_a + index * logits.stride_class;
  }

  // Asks for a row of classes [first, first + classes): there after wait_copies and a barrier.
  ISP_DEVICE void ask(char* to, int row, int first, int classes, int threads) const {
    const int size = static_cast<int>(item(logits.dtype));
    if (logits.stride_b == 1) {
      share_out(classes, pitch / 16, threads, [&](int k, int vector) {
        const char* from = logits.data + offset(row, first + k) * size;
        const char* end = from + count * size;
        from += 16 * vector - static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16);
        const int64_t bytes = end - from;
        if (bytes > 0) copy_16(to + k * pitch + 16 * vector, from, static_cast<int>(bytes < 16 ? bytes : 16));
      });
      return;
    }
    const auto bring = [&](int k, int x) {
      const char* from = logits.data + (offset(row, first + k) + x * logits.stride_b) * size;
      char* place = to + k * pitch + x * size;
      if (size == 4) return store_as(place, load_as<uint32_t>(from));
      store_as(place, load_as<uint16_t>(from));
    };
    if (logits.stride_class == 1) {
      share_out(count, classes, threads, [&](int x, int k) { bring(k, x); });
    } else {
      share_out(classes, count, threads, bring);
    }
  }

  // Where the cells of class first + k begin.
  ISP_DEVICE const char* line(const char* from, int row, int first, int k) const {
    from += k * pitch;
    if (logits.stride_b != 1) return from;
    const uint32_t elements = static_cast<uint32_t>(offset(row, first + k));
    const uint32_t low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(logits.data));
    return from + (low + elements * static_cast<uint32_t>(item(logits.dtype))) % 16;
  }
  ISP_DEVICE float value(const char* line, int x) const {
    if (logits.dtype == Dtype::float32) return cell_value(load_as<float>(line + 4 * x));
    const uint16_t bits = load_as<uint16_t>(line + 2 * x);
    return cell_value(logits.dtype == Dtype::bfloat16 ? from_bfloat16(bits) : from_float16(bits));
  }
};

// Two neighbouring rows of a window, and the next one on its way, as a block goes down the map.
struct Rows {
  const Window window;
  const int height, first, classes, threads;
  char* const memory;  // three rows
  int at = -1, asked = 0;  // the upper one; rows before this one were asked for, from `at` on

  ISP_DEVICE Rows(const Window& window, int height, int first, int classes, int threads, char* memory)
      : window(window), height(height), first(first), classes(classes), threads(threads),
        memory(memory) {}

  ISP_DEVICE char* slot(int row) const { return memory + row % 3 * (classes * window.pitch); }
  ISP_DEVICE void ask(int row) {
    if (row < height) window.ask(slot(row), row, first, classes, threads);
    asked = row + 1;
  }

  // Rows `row` and the next one are there afterwards. All threads come here with the same row.
  ISP_DEVICE void reach(int row) {
    if (row == at) return;
    if (row + 1 >= asked) {
      // Not what was asked for ahead: what is under way must not come into it.
      wait_copies<0>();
      __syncthreads();
      for (int next = asked > row ? asked : row; next <= row + 1; ++next) ask(next);
      commit_copies();
    }
    wait_copies<0>();
    __syncthreads();
    at = row;
    ask(row + 2);
    commit_copies();
  }
};

}  // namespace isp_distill::cuda
