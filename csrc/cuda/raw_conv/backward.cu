// The backward kernels of raw_conv, one for each type of the output, and what adds their sums up.
#include "cuda/raw_conv/backward.h"

namespace isp_distill::cuda {

ISP_KERNEL(2) raw_conv_backward_bfloat16(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  backward_block<BFloat16>(c, l);
}
ISP_KERNEL(2) raw_conv_backward_float16(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  backward_block<Float16>(c, l);
}
ISP_KERNEL(2) raw_conv_backward_float32(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  backward_block<Float32>(c, l);
}
ISP_KERNEL(2) raw_conv_add_up(const float* sums, float* out, int places, int size) {
  add_up_block(sums, out, places, size);
}

}  // namespace isp_distill::cuda
