// What the integer products check and read of their arguments.
#pragma once

#include <optional>

#include "../checks.h"
#include "../kernels/params.h"

namespace bark_accel {

inline void check_float_vector(const char* op, const char* name, const Tensor& t, Sizes sizes) {
  check_cpu(op, name, t);
  check_sizes(op, name, t, sizes);
  BARK_CHECK(t.scalar_type() == kFloat, op, "expected ", name, " of dtype float32, got ", t.scalar_type());
  check_unit_stride(op, name, t);
}

inline void check_input(const char* op, const Tensor& input) {
  check_dim(op, "input", input, 2, "[M, K]");
  check_float_vector(op, "input", input, input.sizes());
  BARK_CHECK(input.size(1) > 0, op, "expected input of shape [M, K] with K > 0, got ", input.sizes());
}

// [N, K], int8 with scales and only then.
inline void check_weight(const char* op, const Tensor& weight, const std::optional<Tensor>& scales) {
  check_cpu(op, "weight", weight);
  check_dim(op, "weight", weight, 2, "[N, K]");
  check_unit_stride(op, "weight", weight);
  const ScalarType dtype = weight.scalar_type();
  BARK_CHECK((dtype == kChar) == scales.has_value(), op,
             "expected scales with an int8 weight and only then, got ", scales ? "scales" : "none",
             " with a weight of dtype ", dtype);
  if (!scales) {
    checked_dtype(op, "weight", weight);
    return;
  }
  check_float_vector(op, "scales", *scales, {weight.size(0), (weight.size(1) + kInt8Group - 1) / kInt8Group});
}

inline void set_weight(const char* op, const Tensor& weight, const std::optional<Tensor>& scales,
                       IntLinearParams& p) {
  p.weight = weight.const_data_ptr();
  p.weight_stride = weight.stride(0);
  p.columns = weight.size(0);
  p.inner = weight.size(1);
  if (scales) {
    p.scales = scales->const_data_ptr<float>();
    p.scales_stride = scales->stride(0);
  } else {
    p.dtype = checked_dtype(op, "weight", weight);
  }
}

inline void set_rows(const Tensor& input, const std::optional<Tensor>& bias, const Tensor& out, bool gelu,
                     IntLinearParams& p) {
  p.input = input.const_data_ptr<float>();
  p.input_stride = input.stride(0);
  p.rows = input.size(0);
  p.inner = input.size(1);
  if (bias) p.bias = bias->const_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  p.gelu = gelu;
}

// The output of one of the products, by `multiply`.
template <class Multiply>
Tensor int_linear(const char* op, const Tensor& input, const Tensor& weight,
                  const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, bool gelu,
                  Multiply multiply) {
  check_input(op, input);
  check_weight(op, weight, scales);
  check_sizes(op, "weight", weight, {weight.size(0), input.size(1)});
  if (bias) check_float_vector(op, "bias", *bias, {weight.size(0)});
  Tensor out = empty({input.size(0), weight.size(0)}, kFloat);
  if (out.numel() == 0) return out;
  IntLinearParams p{};
  set_weight(op, weight, scales, p);
  set_rows(input, bias, out, gelu, p);
  multiply(p);
  return out;
}

}  // namespace bark_accel
