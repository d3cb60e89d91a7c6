#include "int_linear_inputs.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "int8_linear";
constexpr int64_t kMultipliesPerTask = 1 << 20;
constexpr int64_t kPackedBytes = 4 << 20;  // rows packed at once: they are read again for every column panel

void multiply(IntLinearParams& p) {
  const KernelTable& table = kernels();
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  // Few columns for many threads: cut the rows as well.
  p.row_parts = std::min((2 * get_num_threads() + column_panels - 1) / column_panels, row_panels);
  p.packed = shared_scratch(table.int8_packed_bytes(p) / int64_t(sizeof(float)));
  parallel_for(0, row_panels, 8, [&](int64_t begin, int64_t end) { table.int8_pack_rows(p, begin, end); });
  const int64_t work = p.rows * table.int16_panel_columns * p.inner / p.row_parts;
  parallel_for(0, column_panels * p.row_parts, std::max<int64_t>(1, kMultipliesPerTask / work),
               [&](int64_t begin, int64_t end) {
                 table.int8_multiply(p, begin, end, thread_scratch(table.int8_scratch(p)));
               });
}

Tensor int8_linear(const Tensor& input, const Tensor& weight, const Tensor& scales,
                   const std::optional<Tensor>& bias, bool gelu) {
  const std::optional<Tensor> given = scales;
  const IntLinearInputs inputs{input, weight, given, bias};
  inputs.check(kOp);
  BARK_CHECK(weight.scalar_type() == kChar, kOp, "expected weight of dtype int8, got ", weight.scalar_type());
  Tensor out = empty({input.size(0), weight.size(0)}, input.scalar_type(), input.device());
  if (out.numel() == 0) return out;
  const IntLinearParams all = inputs.params(out, gelu);
  const int64_t panel = kernels().int16_panel_rows, panels = (all.rows + panel - 1) / panel;
  const int64_t at_once = std::max<int64_t>(1, kPackedBytes / all.inner / panel);
  const int64_t parts = (panels + at_once - 1) / at_once;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * panels / parts * panel;
    IntLinearParams p = all;
    p.rows = std::min(all.rows, (part + 1) * panels / parts * panel) - first;
    p.input += first * p.input_stride;
    p.out += first * p.columns;
    multiply(p);
  }
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<int8_linear>("int8_linear")});

}  // namespace bark_accel
