#include "int_linear.h"
#include "int_linear_inputs.h"

namespace bark_accel {
namespace {

Tensor int16_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& scales,
                    const std::optional<Tensor>& bias, bool gelu) {
  return int_linear("int16_linear", input, weight, scales, bias, gelu, multiply_int16);
}

}  // namespace

const Implementations registered("CPU", {implement<int16_linear>("int16_linear")});

}  // namespace bark_accel
