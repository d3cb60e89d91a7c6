// The codec's convolution and LSTM layer.
#pragma once

#include "common.h"

namespace cpu_cases {

inline double elu(double x) { return x > 0 ? x : std::expm1(x); }

inline void float32_conv(Run& run) {
  const KernelTable& table = any_table(run);
  Float32ConvParams p{};
  Float32LinearParams& product = p.product;
  product.rows = run.size(60);
  product.columns = product.residual_stride = run.coin() ? 1 : run.size(80);
  product.inner = product.input_stride = p.before_stride = run.size(300);
  p.taps = run.integer(1, 7);
  p.dilation = run.integer(1, 3);
  p.elu = run.coin();
  const int64_t left = (p.taps - 1) * p.dilation, channels = product.inner, columns = product.columns;
  const std::vector<float> input = random_floats(run, product.rows * channels);
  const std::vector<float> before = random_floats(run, left * channels);
  const std::vector<float> weight = random_floats(run, p.taps * channels * columns);
  const std::vector<float> bias = run.coin() ? random_floats(run, columns) : std::vector<float>();
  const std::vector<float> residual =
      run.coin() ? random_floats(run, product.rows * columns) : std::vector<float>();
  Blocks to;
  product.input = to.exact(input);
  p.before = to.exact(before);
  product.weight = to.exact(weight);
  product.bias = to.exact(bias);
  product.residual = to.exact(residual);
  product.out = to.result<float>(product.rows * columns);
  const int64_t row_panels = (product.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  p.column_parts = std::min<int64_t>(column_panels, run.integer(1, 2));
  parallel(run, p.row_parts * p.column_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.float32_conv_scratch(p));
    table.float32_conv(p, begin, end, scratch.data());
  });
  std::vector<float> joined(before);
  joined.insert(joined.end(), input.begin(), input.end());
  for (int64_t r = 0; r < product.rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) {
      double sum = bias.empty() ? 0 : bias[n], squares = 0;
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        for (int64_t c = 0; c < channels; ++c) {
          const double x = joined[(r + tap * p.dilation) * channels + c];
          const double term = (p.elu ? elu(x) : x) * weight[(tap * channels + c) * columns + n];
          sum += term;
          squares += term * term;
        }
      }
      if (!residual.empty()) sum += residual[r * columns + n];
      run.expect_close(product.out[r * columns + n], sum, 1 + std::sqrt(squares), 5e-6,
                       "output " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A row's hidden and cell state after one more step, in double precision.
inline void step_units(const LstmParams& p, int64_t row, int64_t step, std::vector<double>& hidden,
                       std::vector<double>& cell) {
  const std::vector<double> before = hidden;
  for (int64_t u = 0; u < p.size; ++u) {
    double sums[4];
    for (int64_t gate = 0; gate < 4; ++gate) {
      sums[gate] = p.gates[((row * p.steps + step) * 4 + gate) * p.size + u];
      for (int64_t k = 0; k < p.size; ++k) {
        const int64_t place = (u / kLstmUnits * p.size + k) * 4 + gate;
        sums[gate] += before[k] * p.weight[place * kLstmUnits + u % kLstmUnits];
      }
    }
    cell[u] = sigmoid(sums[1]) * cell[u] + sigmoid(sums[0]) * std::tanh(sums[2]);
    hidden[u] = sigmoid(sums[3]) * std::tanh(cell[u]);
  }
}

inline void lstm_layer(Run& run) {
  const KernelTable& table = any_table(run);
  LstmParams p{};
  p.batch = run.integer(1, 5);
  p.steps = run.integer(1, 6);
  p.size = kLstmUnits * run.integer(1, 4);
  const std::vector<float> gates = random_floats(run, p.batch * p.steps * 4 * p.size);
  std::vector<float> weight = random_floats(run, 4 * p.size * p.size);
  for (float& w : weight) w /= std::sqrt(float(p.size));
  const std::vector<float> first_hidden = random_floats(run, p.batch * p.size);
  const std::vector<float> first_cell = random_floats(run, p.batch * p.size);
  Blocks to;
  p.gates = to.exact(gates);
  p.weight = to.exact(weight);
  p.hidden = to.exact(first_hidden);
  p.cell = to.exact(first_cell);
  p.out = to.result<float>(p.batch * p.steps * p.size);
  run_team(run.integer(1, 3), [&](const Team& team) { table.lstm_layer(p, team); });
  for (int64_t row = 0; row < p.batch; ++row) {
    const int64_t begin = row * p.size, end = begin + p.size;
    std::vector<double> hidden(first_hidden.begin() + begin, first_hidden.begin() + end);
    std::vector<double> cell(first_cell.begin() + begin, first_cell.begin() + end);
    for (int64_t step = 0; step < p.steps; ++step) {
      step_units(p, row, step, hidden, cell);
      const float* out = p.out + (row * p.steps + step) * p.size;
      for (int64_t u = 0; u < p.size; ++u) run.expect_close(out[u], hidden[u], 1, 1e-5, "a hidden unit");
    }
    for (int64_t u = 0; u < p.size; ++u) {
      run.expect_close(p.hidden[begin + u], hidden[u], 1, 1e-5, "the last hidden unit");
      run.expect_close(p.cell[begin + u], cell[u], 1, 1e-5, "the last cell");
    }
  }
}

}  // namespace cpu_cases
