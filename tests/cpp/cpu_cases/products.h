// Products of a block of rows: int16, int8, float32, and the largest integers there are.
#pragma once

#include "common.h"

namespace cpu_cases {

// int16_linear, or int8_linear beside int8 weights.
inline void int_linear(Run& run, bool int8) {
  const KernelTable& table = any_table(run);
  IntLinearParams p{};
  p.rows = run.size(60);
  p.columns = run.size(80);
  p.inner = run.size(600);
  p.input_stride = p.weight_stride = p.inner;
  p.gelu = run.coin();
  const DType any = run.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8});
  const DType dtype = int8 ? DType::kInt8 : any;
  p.dtype = dtype == DType::kInt8 ? DType::kFloat32 : dtype;
  const Matrix weight = Matrix::random(run, p.columns, p.inner, dtype, run.coin());
  const std::vector<float> input = random_floats(run, p.rows * p.inner);
  Blocks to;
  const MatrixView view = exact(to, weight);
  p.weight = view.weight;
  p.bias = view.bias;
  p.scales = view.scales;
  p.scales_stride = view.scale_stride;
  p.input = to.exact(input);
  p.out = to.result<float>(p.rows * p.columns);
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  if (run.coin()) {
    const int64_t group = int8 ? kInt8Group : table.int16_group;
    const int64_t rows =
        (int8 ? table.int8_column_rows : table.int16_column_rows) * table.int16_panel_columns;
    int32_t* panels = to.empty<int32_t>(column_panels * ((p.inner + group - 1) / group) * rows);
    parallel(run, column_panels, [&](int64_t begin, int64_t end) {
      (int8 ? table.int8_pack_columns : table.int16_pack_columns)(p, begin, end, panels);
    });
    p.panels = panels;
    p.weight = nullptr;
    p.scales = nullptr;
  }
  p.packed = to.empty<int32_t>((int8 ? table.int8_packed_bytes : table.int16_packed_bytes)(p) / 4);
  parallel(run, row_panels, [&](int64_t begin, int64_t end) {
    (int8 ? table.int8_pack_rows : table.int16_pack_rows)(p, begin, end);
  });
  parallel(run, column_panels * p.row_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch((int8 ? table.int8_scratch : table.int16_scratch)(p));
    (int8 ? table.int8_multiply : table.int16_multiply)(p, begin, end, scratch.data());
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> x(input.begin() + r * p.inner, input.begin() + (r + 1) * p.inner);
    const std::vector<double> expected = weight.times(x);
    for (int64_t n = 0; n < p.columns; ++n) {
      double squares = 0;
      for (int64_t k = 0; k < p.inner; ++k) squares += std::pow(x[k] * weight.values[n * p.inner + k], 2);
      const double gelu = 0.5 * expected[n] * (1 + std::erf(expected[n] / std::sqrt(2.0)));
      run.expect_close(p.out[r * p.columns + n], p.gelu ? gelu : expected[n], 1 + std::sqrt(squares),
                       int8 ? 5e-2 : 1e-3, "product " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

// Every number is the largest there is, so are the sums: what saturates, or leaves int32, is far off.
inline void largest_integers(Run& run) {
  const KernelTable& table = any_table(run);
  const bool int8 = run.coin();
  const int64_t rows = run.size(30), columns = run.size(70), inner = run.size(600);
  const float x = run.pick({127.0f, -127.0f});
  const int8_t w = run.pick<int8_t>({127, -127, -128});
  Blocks to;
  IntLinearParams p{};
  p.rows = rows;
  p.columns = columns;
  p.inner = p.input_stride = p.weight_stride = inner;
  p.dtype = DType::kFloat32;
  p.input = to.exact(std::vector<float>(rows * inner, x));
  p.weight = to.exact(std::vector<int8_t>(columns * inner, w));
  p.scales_stride = ceil_div(inner, kInt8Group);
  p.scales = to.exact(std::vector<float>(columns * p.scales_stride, 1.0f));
  p.out = to.result<float>(rows * columns);
  p.row_parts = 1;
  p.packed = to.empty<int32_t>((int8 ? table.int8_packed_bytes : table.int16_packed_bytes)(p) / 4);
  (int8 ? table.int8_pack_rows : table.int16_pack_rows)(p, 0, ceil_div(rows, table.int16_panel_rows));
  std::vector<float> scratch((int8 ? table.int8_scratch : table.int16_scratch)(p));
  const int64_t tasks = ceil_div(columns, table.int16_panel_columns);
  (int8 ? table.int8_multiply : table.int16_multiply)(p, 0, tasks, scratch.data());
  const double expected = double(x) * w * double(inner);
  for (int64_t i = 0; i < rows * columns; ++i) {
    run.expect_close(p.out[i], expected, std::fabs(expected), int8 ? 1e-7 : 1e-3,
                     "largest integers " + std::to_string(i));
  }
}

inline void int16_linear(Run& run) { int_linear(run, false); }
inline void int8_linear(Run& run) { int_linear(run, true); }

inline void float32_linear(Run& run) {
  const KernelTable& table = any_table(run);
  Float32LinearParams p{};
  p.rows = run.size(60);
  p.columns = p.residual_stride = run.size(80);
  p.inner = p.input_stride = p.weight_stride = run.size(600);
  p.gelu = run.coin();
  const Matrix weight = Matrix::random(run, p.columns, p.inner, DType::kFloat32, run.coin());
  const std::vector<float> input = random_floats(run, p.rows * p.inner);
  const std::vector<float> residual =
      run.coin() ? random_floats(run, p.rows * p.columns) : std::vector<float>();
  Blocks to;
  const MatrixView view = exact(to, weight);
  p.weight = static_cast<const float*>(view.weight);
  p.bias = view.bias;
  p.input = to.exact(input);
  p.residual = to.exact(residual);
  p.out = to.result<float>(p.rows * p.columns);
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  p.packed = to.empty<float>(table.float32_packed(p));
  parallel(run, row_panels, [&](int64_t begin, int64_t end) { table.float32_pack_rows(p, begin, end); });
  parallel(run, column_panels * p.row_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.float32_scratch(p));
    table.float32_multiply(p, begin, end, scratch.data());
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> x(input.begin() + r * p.inner, input.begin() + (r + 1) * p.inner);
    const std::vector<double> products = weight.times(x);
    for (int64_t n = 0; n < p.columns; ++n) {
      double squares = 0;
      for (int64_t k = 0; k < p.inner; ++k) squares += std::pow(x[k] * weight.values[n * p.inner + k], 2);
      double expected = products[n];
      if (p.gelu) expected *= 0.5 * (1 + std::erf(expected / std::sqrt(2.0)));
      if (p.residual) expected += residual[r * p.columns + n];
      run.expect_close(p.out[r * p.columns + n], expected, 1 + std::sqrt(squares), 5e-6,
                       "float32 product " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

}  // namespace cpu_cases
