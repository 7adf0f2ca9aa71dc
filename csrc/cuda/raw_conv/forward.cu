// The forward kernels of raw_conv, one for each type of the output.
#include "cuda/raw_conv/forward.h"

namespace isp_distill::cuda {

ISP_KERNEL(2) raw_conv_forward_bfloat16(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  forward_block<BFloat16>(c, l);
}
ISP_KERNEL(2) raw_conv_forward_float16(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  forward_block<Float16>(c, l);
}
ISP_KERNEL(2) raw_conv_forward_float32(ISP_CONSTANT RawConvCall c, ISP_CONSTANT Layout l) {
  forward_block<Float32>(c, l);
}

}  // namespace isp_distill::cuda
