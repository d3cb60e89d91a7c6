// The two integer products, with weights as they are stored or laid out ahead.
#pragma once

#include "../kernels/params.h"

namespace bark_accel {

// out = input * weight^T (+ bias, GELU): what IntLinearParams holds up to `gelu`, and `panels`.
void multiply_int16(const IntLinearParams& p);
void multiply_int8(const IntLinearParams& p);

}  // namespace bark_accel
