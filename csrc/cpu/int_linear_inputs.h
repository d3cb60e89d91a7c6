// What the integer products check and read of their arguments.
#pragma once

#include <optional>

#include "../checks.h"
#include "../kernels/params.h"

namespace bark_accel {

struct IntLinearInputs {
  const Tensor &input, &weight;
  const std::optional<Tensor>&scales, &bias;

  void check(const char* op) const {
    check_dim(op, "input", input, 2, "[M, K]");
    check_vector(op, "input", input, input.sizes());
    check_cpu(op, "weight", weight);
    check_dim(op, "weight", weight, 2, "[N, K]");
    check_sizes(op, "weight", weight, {weight.size(0), input.size(1)});
    check_unit_stride(op, "weight", weight);
    BARK_CHECK(input.size(1) > 0, op, "expected input of shape [M, K] with K > 0, got ", input.sizes());
    if (scales)
      check_vector(op, "scales", *scales, {weight.size(0), (weight.size(1) + kInt8Group - 1) / kInt8Group});
    if (bias) check_vector(op, "bias", *bias, {weight.size(0)});
  }

  IntLinearParams params(const Tensor& out, bool gelu) const {
    IntLinearParams p{};
    p.input = input.const_data_ptr<float>();
    p.input_stride = input.stride(0);
    p.weight = weight.const_data_ptr();
    p.weight_stride = weight.stride(0);
    if (scales) {
      p.scales = scales->const_data_ptr<float>();
      p.scales_stride = scales->stride(0);
    }
    if (bias) p.bias = bias->const_data_ptr<float>();
    p.out = out.mutable_data_ptr<float>();
    p.rows = input.size(0);
    p.columns = weight.size(0);
    p.inner = input.size(1);
    p.gelu = gelu;
    return p;
  }

 private:
  static void check_vector(const char* op, const char* name, const Tensor& t, Sizes sizes) {
    check_cpu(op, name, t);
    check_sizes(op, name, t, sizes);
    BARK_CHECK(t.scalar_type() == kFloat, op, "expected ", name, " of dtype float32, got ", t.scalar_type());
    check_unit_stride(op, name, t);
  }
};

}  // namespace bark_accel
