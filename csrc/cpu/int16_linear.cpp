#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "int16_linear";
constexpr int64_t kMultipliesPerTask = 1 << 20;
constexpr int64_t kRowsPerTask = 1024;

void check_vector(const char* name, const at::Tensor& t, at::IntArrayRef sizes) {
  check_cpu(kOp, name, t);
  check_sizes(kOp, name, t, sizes);
  BARK_CHECK(t.scalar_type() == at::kFloat, kOp, "expected ", name, " of dtype float32, got ",
             t.scalar_type());
  check_unit_stride(kOp, name, t);
  check_no_grad(kOp, name, t);
}

void check_inputs(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& scales,
                  const std::optional<at::Tensor>& bias) {
  check_dim(kOp, "input", input, 2, "[M, K]");
  check_vector("input", input, input.sizes());
  check_cpu(kOp, "weight", weight);
  check_dim(kOp, "weight", weight, 2, "[N, K]");
  check_sizes(kOp, "weight", weight, {weight.size(0), input.size(1)});
  check_unit_stride(kOp, "weight", weight);
  check_no_grad(kOp, "weight", weight);
  BARK_CHECK(input.size(1) > 0, kOp, "expected input of shape [M, K] with K > 0, got ", input.sizes());
  const bool is_int8 = weight.scalar_type() == at::kChar;
  BARK_CHECK(is_int8 == scales.has_value(), kOp, "expected scales with an int8 weight and only then, got ",
             scales ? "scales" : "none", " with a weight of dtype ", weight.scalar_type());
  if (is_int8) {
    check_vector("scales", *scales, {weight.size(0), (weight.size(1) + kInt8Group - 1) / kInt8Group});
  } else {
    checked_dtype(kOp, "weight", weight);
  }
  if (bias) check_vector("bias", *bias, {weight.size(0)});
}

void multiply(Int16LinearParams& p) {
  const KernelTable& table = kernels();
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  // Few columns for many threads, or more sums than a cache holds: cut the rows as well.
  const int64_t wanted = std::max((2 * at::get_num_threads() + column_panels - 1) / column_panels,
                                  (p.rows + kRowsPerTask - 1) / kRowsPerTask);
  p.row_parts = std::max<int64_t>(1, std::min(wanted, row_panels));
  at::Tensor packed = at::empty({table.int16_packed_bytes(p)}, at::kByte);
  p.packed = packed.mutable_data_ptr();
  at::parallel_for(0, row_panels, 8,
                   [&](int64_t begin, int64_t end) { table.int16_pack_rows(p, begin, end); });
  const int64_t work = p.rows * table.int16_panel_columns * p.inner / p.row_parts;
  at::parallel_for(0, column_panels * p.row_parts, std::max<int64_t>(1, kMultipliesPerTask / work),
                   [&](int64_t begin, int64_t end) {
                     table.int16_multiply(p, begin, end, thread_scratch(table.int16_scratch(p)));
                   });
}

at::Tensor int16_linear(const at::Tensor& input, const at::Tensor& weight,
                        const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                        bool gelu) {
  check_inputs(input, weight, scales, bias);
  at::Tensor out = at::empty({input.size(0), weight.size(0)}, input.options());
  if (out.numel() == 0) return out;
  Int16LinearParams p{};
  p.input = input.const_data_ptr<float>();
  p.input_stride = input.stride(0);
  p.weight = weight.const_data_ptr();
  p.weight_stride = weight.stride(0);
  if (scales) {
    p.scales = scales->const_data_ptr<float>();
    p.scales_stride = scales->stride(0);
  } else {
    p.dtype = checked_dtype(kOp, "weight", weight);
  }
  if (bias) p.bias = bias->const_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  p.rows = input.size(0);
  p.columns = weight.size(0);
  p.inner = input.size(1);
  p.gelu = gelu;
  multiply(p);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) { m.impl("int16_linear", int16_linear); }

}  // namespace bark_accel
