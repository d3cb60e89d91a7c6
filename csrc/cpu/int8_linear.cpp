#include "int_linear.h"
#include "int_linear_inputs.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "int8_linear";

Tensor int8_linear(const Tensor& input, const Tensor& weight, const Tensor& scales,
                   const std::optional<Tensor>& bias, bool gelu) {
  BARK_CHECK(weight.scalar_type() == kChar, kOp, "expected weight of dtype int8, got ", weight.scalar_type());
  return int_linear(kOp, input, weight, scales, bias, gelu, multiply_int8);
}

}  // namespace

const Implementations registered("CPU", {implement<int8_linear>("int8_linear")});

}  // namespace bark_accel
