#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "float32_linear";
constexpr int64_t kMultipliesPerTask = 1 << 20;
constexpr int64_t kPackedFloats = 1 << 20;  // rows packed at once: they are read again for every column panel
constexpr int64_t kRowsAtOnce = 1024;       // and their sums

void check_floats(const char* name, const Tensor& t) {
  check_cpu(kOp, name, t);
  BARK_CHECK(t.scalar_type() == kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  check_unit_stride(kOp, name, t);
}

void check_inputs(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual) {
  check_dim(kOp, "input", input, 2, "[M, K]");
  check_floats("input", input);
  BARK_CHECK(input.size(1) > 0, kOp, "expected input of shape [M, K] with K > 0, got ", input.sizes());
  check_dim(kOp, "weight", weight, 2, "[N, K]");
  check_sizes(kOp, "weight", weight, {weight.size(0), input.size(1)});
  check_floats("weight", weight);
  if (bias) {
    check_sizes(kOp, "bias", *bias, {weight.size(0)});
    check_floats("bias", *bias);
  }
  if (residual) {
    check_sizes(kOp, "residual", *residual, {input.size(0), weight.size(0)});
    check_floats("residual", *residual);
  }
}

void multiply(Float32LinearParams& p) {
  const KernelTable& table = kernels();
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  // Few columns for many threads: cut the rows as well.
  const int64_t wanted = (2 * get_num_threads() + column_panels - 1) / column_panels;
  p.row_parts = std::min(wanted, row_panels);
  p.packed = shared_scratch(table.float32_packed(p));
  parallel_for(0, row_panels, 8, [&](int64_t begin, int64_t end) { table.float32_pack_rows(p, begin, end); });
  const int64_t work = p.rows * table.int16_panel_columns * p.inner / p.row_parts;
  parallel_for(0, column_panels * p.row_parts, std::max<int64_t>(1, kMultipliesPerTask / work),
               [&](int64_t begin, int64_t end) {
                 table.float32_multiply(p, begin, end, thread_scratch(table.float32_scratch(p)));
               });
}

Tensor float32_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& residual, bool gelu) {
  check_inputs(input, weight, bias, residual);
  Tensor out = empty({input.size(0), weight.size(0)}, input.scalar_type(), input.device());
  if (out.numel() == 0) return out;
  Float32LinearParams p{};
  p.input_stride = input.stride(0);
  p.weight = weight.const_data_ptr<float>();
  p.weight_stride = weight.stride(0);
  if (bias) p.bias = bias->const_data_ptr<float>();
  if (residual) p.residual_stride = residual->stride(0);
  p.columns = weight.size(0);
  p.inner = input.size(1);
  p.gelu = gelu;
  const int64_t panel = kernels().int16_panel_rows, panels = (input.size(0) + panel - 1) / panel;
  const int64_t at_once = std::max<int64_t>(1, std::min(kRowsAtOnce, kPackedFloats / p.inner) / panel);
  const int64_t parts = (panels + at_once - 1) / at_once;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * panels / parts * panel;
    p.rows = std::min(input.size(0), (part + 1) * panels / parts * panel) - first;
    p.input = input.const_data_ptr<float>() + first * p.input_stride;
    if (residual) p.residual = residual->const_data_ptr<float>() + first * p.residual_stride;
    p.out = out.mutable_data_ptr<float>() + first * p.columns;
    multiply(p);
  }
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<float32_linear>("float32_linear")});

}  // namespace bark_accel
