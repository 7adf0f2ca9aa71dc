// What operators need to run a kernel over many pieces of work: buffers, threads and huge pages.
//
// Included by operators only, which are compiled once, for the baseline of the architecture.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace isp_distill {

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

inline Buffer allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
  STD_TORCH_CHECK(p != nullptr, "out of memory: a kernel needs ", bytes, " bytes");
  return Buffer(static_cast<float*>(p));
}

// Runs run(item, workspace) for every item. Threads take the next item when they are done with one, and
// each has a workspace of its own.
template <class Run>
void for_each(int64_t items, int64_t workspace_floats, const Run& run) {
  if (items == 0) return;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), items);
  // A multiple of the page's size keeps the threads' workspaces apart.
  const int64_t each = (workspace_floats + 1023) / 1024 * 1024;
  const Buffer workspace = allocate(threads * each);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item; (item = next.fetch_add(1)) < items;) {
        run(item, workspace.get() + thread * each);
      }
    }
  });
}

// The output is fresh memory that the system hands out page by page on the first write; for large
// tensors that takes longer than the kernel. Pages of 2 MiB make it cheap where they are allowed.
inline void advise_huge_pages(const void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  // A hint: whether it is taken makes no difference to the result.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}
inline void advise_huge_pages(const torch::stable::Tensor& out) {
  advise_huge_pages(out.data_ptr(), out.numel() * out.element_size());
}

}  // namespace isp_distill
