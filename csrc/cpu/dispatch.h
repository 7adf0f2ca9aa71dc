// Which compiled variant of a kernel runs: the best instruction set that this processor has.
//
// A file csrc/cpu/*_kernel.cpp is compiled once for each instruction set (see setup.py), and its
// functions live in isp_distill::generic, isp_distill::avx2 and isp_distill::avx512. An operator
// declares the function with ISP_DISTILL_DECLARE_KERNEL at namespace scope, in isp_distill, and calls
// ISP_DISTILL_KERNEL(function)(arguments...).
#pragma once

namespace isp_distill {

enum class InstructionSet { generic, avx2, avx512 };

// The best instruction set of this processor, or the one that the environment variable
// ISP_DISTILL_CPU names. Throws std::runtime_error where the name is unknown or the processor lacks it.
InstructionSet instruction_set();

const char* name_of(InstructionSet set);

template <class Function>
Function* choose_kernel(Function* generic, Function* avx2, Function* avx512) {
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx2:
      return avx2;
    default:
      return generic;
  }
}

}  // namespace isp_distill

#if defined(__x86_64__)
#define ISP_DISTILL_DECLARE_KERNEL(function, signature) \
  namespace generic {                                   \
  void function signature;                              \
  }                                                     \
  namespace avx2 {                                      \
  void function signature;                              \
  }                                                     \
  namespace avx512 {                                    \
  void function signature;                              \
  }
#define ISP_DISTILL_KERNEL(function)                                                      \
  ::isp_distill::choose_kernel(                                                           \
      ::isp_distill::generic::function, ::isp_distill::avx2::function,                    \
      ::isp_distill::avx512::function)
#else
#define ISP_DISTILL_DECLARE_KERNEL(function, signature) \
  namespace generic {                                   \
  void function signature;                              \
  }
// One variant; instruction_set() is still asked, so that a wrong ISP_DISTILL_CPU is an error.
#define ISP_DISTILL_KERNEL(function)                                                      \
  ::isp_distill::choose_kernel(                                                           \
      ::isp_distill::generic::function, ::isp_distill::generic::function,                 \
      ::isp_distill::generic::function)
#endif
