#include "int_linear_inputs.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "int16_linear";
constexpr int64_t kMultipliesPerTask = 1 << 20;
constexpr int64_t kRowsPerTask = 1024;

void check_inputs(const IntLinearInputs& inputs) {
  inputs.check(kOp);
  const ScalarType dtype = inputs.weight.scalar_type();
  BARK_CHECK((dtype == kChar) == inputs.scales.has_value(), kOp,
             "expected scales with an int8 weight and only then, got ", inputs.scales ? "scales" : "none",
             " with a weight of dtype ", dtype);
  if (!inputs.scales) checked_dtype(kOp, "weight", inputs.weight);
}

void multiply(IntLinearParams& p) {
  const KernelTable& table = kernels();
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  // Few columns for many threads, or more sums than a cache holds: cut the rows as well.
  const int64_t wanted = std::max((2 * get_num_threads() + column_panels - 1) / column_panels,
                                  (p.rows + kRowsPerTask - 1) / kRowsPerTask);
  p.row_parts = std::max<int64_t>(1, std::min(wanted, row_panels));
  Tensor packed = empty({table.int16_packed_bytes(p)}, kByte);
  p.packed = packed.mutable_data_ptr();
  parallel_for(0, row_panels, 8, [&](int64_t begin, int64_t end) { table.int16_pack_rows(p, begin, end); });
  const int64_t work = p.rows * table.int16_panel_columns * p.inner / p.row_parts;
  parallel_for(0, column_panels * p.row_parts, std::max<int64_t>(1, kMultipliesPerTask / work),
               [&](int64_t begin, int64_t end) {
                 table.int16_multiply(p, begin, end, thread_scratch(table.int16_scratch(p)));
               });
}

Tensor int16_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& scales,
                    const std::optional<Tensor>& bias, bool gelu) {
  const IntLinearInputs inputs{input, weight, scales, bias};
  check_inputs(inputs);
  Tensor out = empty({input.size(0), weight.size(0)}, input.scalar_type(), input.device());
  if (out.numel() == 0) return out;
  IntLinearParams p = inputs.params(out, gelu);
  if (!scales) p.dtype = checked_dtype(kOp, "weight", weight);
  multiply(p);
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<int16_linear>("int16_linear")});

}  // namespace bark_accel
