#include "int_linear.h"

#include <algorithm>

#include "../tensor.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr int64_t kMultipliesPerTask = 1 << 20;
constexpr int64_t kPackedBytes = 4 << 20;  // rows packed at once: they are read again for every column panel
constexpr int64_t kRowsAtOnce = 1024;      // and in 16 bits their sums

struct Kernels {
  int64_t (*packed_bytes)(const IntLinearParams&);
  int64_t (*scratch)(const IntLinearParams&);
  void (*pack_rows)(const IntLinearParams&, int64_t, int64_t);
  void (*multiply)(const IntLinearParams&, int64_t, int64_t, float*);
};

void multiply_part(IntLinearParams& p, const Kernels& kernel) {
  const KernelTable& table = kernels();
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  // Few columns for many threads: cut the rows as well.
  p.row_parts = std::min((2 * get_num_threads() + column_panels - 1) / column_panels, row_panels);
  p.packed = shared_scratch(kernel.packed_bytes(p) / int64_t(sizeof(float)));
  parallel_for(0, row_panels, 8, [&](int64_t begin, int64_t end) { kernel.pack_rows(p, begin, end); });
  const int64_t work = p.rows * table.int16_panel_columns * p.inner / p.row_parts;
  parallel_for(
      0, column_panels * p.row_parts, std::max<int64_t>(1, kMultipliesPerTask / work),
      [&](int64_t begin, int64_t end) { kernel.multiply(p, begin, end, thread_scratch(kernel.scratch(p))); });
}

// At most `rows_at_once`, in parts of whole panels and of about one length.
void multiply(const IntLinearParams& all, const Kernels& kernel, int64_t rows_at_once) {
  const int64_t panel = kernels().int16_panel_rows, panels = (all.rows + panel - 1) / panel;
  const int64_t at_once = std::max<int64_t>(1, rows_at_once / panel),
                parts = (panels + at_once - 1) / at_once;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * panels / parts * panel;
    IntLinearParams p = all;
    p.rows = std::min(all.rows, (part + 1) * panels / parts * panel) - first;
    p.input += first * p.input_stride;
    p.out += first * p.columns;
    multiply_part(p, kernel);
  }
}

}  // namespace

void multiply_int16(const IntLinearParams& p) {
  const KernelTable& t = kernels();
  multiply(p, {t.int16_packed_bytes, t.int16_scratch, t.int16_pack_rows, t.int16_multiply}, kRowsAtOnce);
}

void multiply_int8(const IntLinearParams& p) {
  const KernelTable& t = kernels();
  multiply(p, {t.int8_packed_bytes, t.int8_scratch, t.int8_pack_rows, t.int8_multiply},
           kPackedBytes / p.inner);
}

}  // namespace bark_accel
