// Runs the CUDA kernels' source on the CPU: what device.h has for nvcc, for a C++ compiler.
//
// Each thread of a block is a fibre with a stack of its own. A fibre runs until it meets a barrier (of
// its warp or of the block), and whichever fibre can run is taken next in an order shuffled from a
// seed: code that leaves out a barrier meets its data in several orders, and a result that depends on
// them shows. Shared memory is an allocation of exactly the size asked for, filled with NaNs, so the
// address sanitiser sees every access beyond it and unset values show. Asynchronous copies happen when
// they are waited for, as late as the hardware may make them.
//
// What this cannot show: two threads that touch the same word between the same two barriers in an
// order that no seed tried, anything about memory between blocks (they run one after another), and
// speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define ISP_SANITISED 1
#else
#define ISP_SANITISED 0
#endif

#define ISP_DEVICE inline
#define ISP_KERNEL(blocks) static void
#define ISP_CONSTANT const
#define ISP_UNROLL
#define ISP_ROLLED

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, gridDim;

namespace isp_distill::cuda {
namespace host {

enum class State { ready, at_warp, at_block, done };

struct Copy {
  char* to;
  const char* from;
  int bytes;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  State state = State::ready;
  std::vector<std::vector<Copy>> groups{1};  // the last one is not committed yet
  unsigned products = 0;                     // matrix instructions so far
};

// Three times what any kernel takes: the sanitiser looks at all of it whenever threads change places.
inline constexpr size_t kStack = 32 << 10;

struct Block {
  std::vector<Fibre> fibres;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  void* scheduler_fake = nullptr;
  char* shared = nullptr;
  const std::function<void()>* body = nullptr;
  unsigned now = 0;
  // [warp][lane]: what a matrix instruction takes from its lanes. Two, in turn: a lane that leaves its
  // fragments for the next instruction knows only that all have begun to read those of this one.
  uint32_t exchange[2][32][32][6];
};
inline Block block;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "host.h: %s\n", what);
  std::abort();
}

inline void pause(State state) {
  Fibre& fibre = block.fibres[block.now];
  fibre.state = state;
#if ISP_SANITISED
  __sanitizer_start_switch_fiber(state == State::done ? nullptr : &fibre.fake_stack,
                                 block.scheduler_stack, block.scheduler_size);
#endif
  swapcontext(&fibre.context, &block.scheduler);
#if ISP_SANITISED
  __sanitizer_finish_switch_fiber(fibre.fake_stack, &block.scheduler_stack, &block.scheduler_size);
#endif
}

inline void enter() {
#if ISP_SANITISED
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_size);
#endif
  (*block.body)();
  if (block.fibres[block.now].groups.size() != 1 || !block.fibres[block.now].groups[0].empty()) {
    fail("a thread ended with copies that nothing waited for");
  }
  pause(State::done);
}

inline void resume(unsigned index) {
  Fibre& fibre = block.fibres[index];
  block.now = index;
  threadIdx.x = index;
#if ISP_SANITISED
  __sanitizer_start_switch_fiber(&block.scheduler_fake, fibre.stack.get(), kStack);
#endif
  swapcontext(&block.scheduler, &fibre.context);
#if ISP_SANITISED
  __sanitizer_finish_switch_fiber(block.scheduler_fake, nullptr, nullptr);
#endif
}

// Lets the fibres [begin, end) go on if every one waits at `state`; false if one does not.
inline bool release(unsigned begin, unsigned end, State state) {
  for (unsigned i = begin; i < end; ++i) {
    if (block.fibres[i].state != state) return false;
  }
  for (unsigned i = begin; i < end; ++i) block.fibres[i].state = State::ready;
  return true;
}

inline void prepare(Fibre& fibre) {
  fibre.state = State::ready;
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStack;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, enter, 0);
}

inline void run_block(unsigned threads, std::mt19937& random) {
  for (unsigned i = 0; i < threads; ++i) prepare(block.fibres[i]);
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool ran = false;
    for (unsigned i : order) {
      if (block.fibres[i].state == State::ready) resume(i), ran = true;
    }
    bool released = false;
    for (unsigned w = 0; w < threads; w += 32) released |= release(w, w + 32, State::at_warp);
    if (ran || released) continue;
    if (release(0, threads, State::done)) return;
    if (!release(0, threads, State::at_block)) fail("not every thread came to the same barrier");
  }
}

// Runs `body` for every thread of a grid of `blocks` x `depth` blocks.
inline void run_grid(unsigned blocks, unsigned depth, unsigned threads, size_t shared, unsigned seed,
                     const std::function<void()>& body) {
  std::mt19937 random(seed);
  gridDim = {blocks, depth, 1};
  block.fibres = std::vector<Fibre>(threads);
  for (Fibre& fibre : block.fibres) fibre.stack.reset(new char[kStack]);
  block.body = &body;
  for (unsigned y = 0; y < depth; ++y) {
    for (unsigned x = 0; x < blocks; ++x) {
      const std::unique_ptr<char, void (*)(void*)> memory(
          static_cast<char*>(aligned_alloc(16, (shared + 15) / 16 * 16)), free);
      memset(memory.get(), 0xff, shared);
      block.shared = memory.get();
      blockIdx = {x, y, 0};
      run_block(threads, random);
    }
  }
  block.fibres.clear();
}

}  // namespace host

inline char* shared_memory() { return host::block.shared; }

}  // namespace isp_distill::cuda
