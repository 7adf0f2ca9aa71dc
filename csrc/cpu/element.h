// The element types of the tensors that kernels read and write.
#pragma once

namespace isp_distill {

enum class Element { uint8, uint16, int16, int32, float16, bfloat16, float32, float64 };

}  // namespace isp_distill
