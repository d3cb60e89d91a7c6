// One LSTM layer over its steps: a team of threads with a barrier after each, every thread with units of its
// own. A step reads all weights once, whatever the number of rows, and every second step reads them
// backwards, so that it begins with what the last one left in the nearer cache.
//
// A gate's sum is one chain in order of the hidden units (with 16 lanes two, of the even and the odd ones):
// neither rows nor threads show in it.
#pragma once

#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int kUnitVectors = int(kLstmUnits) / kWidth;  // of one gate
constexpr int kGateVectors = 4 * kUnitVectors;
constexpr int kGateChains = kWidth == 16 ? 2 : 1;    // as many sums as hide a multiply-add's latency
constexpr int64_t kLstmRows = kWidth == 16 ? 3 : 1;  // rows whose sums fit into registers

inline const float* hidden_before(const LstmParams& p, int64_t row, int64_t step) {
  return step == 0 ? p.hidden + row * p.size : p.out + (row * p.steps + step - 1) * p.size;
}

// The gates [4, kLstmUnits] of `Rows` rows from `row` on to sums[Rows, 4 * kLstmUnits].
template <int Rows>
__attribute__((noinline)) void hidden_products(const LstmParams& p, int64_t row, int64_t step, int64_t block,
                                               float* sums) {
  const float* weight = p.weight + block * p.size * 4 * kLstmUnits;
  const float* hidden[Rows];
  for (int r = 0; r < Rows; ++r) hidden[r] = hidden_before(p, row + r, step);
  VecF acc[Rows][kGateChains][kGateVectors] = {};
  for (int64_t k = 0; k < p.size; k += kGateChains) {
    BARK_UNROLL
    for (int chain = 0; chain < kGateChains; ++chain) {
      BARK_UNROLL
      for (int v = 0; v < kGateVectors; ++v) {
        const VecF w = load(weight + (k + chain) * 4 * kLstmUnits + v * kWidth);
        BARK_UNROLL
        for (int r = 0; r < Rows; ++r) acc[r][chain][v] += splat(hidden[r][k + chain]) * w;
      }
    }
  }
  BARK_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BARK_UNROLL
    for (int v = 0; v < kGateVectors; ++v) {
      VecF sum = acc[r][0][v];
      if (kGateChains == 2) sum += acc[r][kGateChains - 1][v];
      store(sums + r * 4 * kLstmUnits + v * kWidth, sum);
    }
  }
}

// Input, forget, cell and output gate of a block's units -> their cell and output.
inline void update_units(const LstmParams& p, int64_t row, int64_t step, int64_t block, const float* sums) {
  const float* gates = p.gates + (row * p.steps + step) * 4 * p.size + block * kLstmUnits;
  float* cell = p.cell + row * p.size + block * kLstmUnits;
  float* out = p.out + (row * p.steps + step) * p.size + block * kLstmUnits;
  for (int64_t u = 0; u < kLstmUnits; u += kWidth) {
    const auto gate = [&](int64_t i) {
      return load(sums + i * kLstmUnits + u) + load(gates + i * p.size + u);
    };
    const VecF state = vsigmoid(gate(1)) * load(cell + u) + vsigmoid(gate(0)) * vtanh(gate(2));
    store(cell + u, state);
    store(out + u, vsigmoid(gate(3)) * vtanh(state));
  }
}

inline void step_block(const LstmParams& p, int64_t step, int64_t block) {
  float sums[kLstmRows * 4 * kLstmUnits];
  for (int64_t row = 0; row < p.batch;) {
    const int64_t rows = min64(kLstmRows, p.batch - row);
    if (rows == 1) hidden_products<1>(p, row, step, block, sums);
#if defined(__AVX512F__)
    if (rows == 2) hidden_products<2>(p, row, step, block, sums);
    if (rows == 3) hidden_products<3>(p, row, step, block, sums);
#endif
    for (int64_t r = 0; r < rows; ++r) update_units(p, row + r, step, block, sums + r * 4 * kLstmUnits);
    row += rows;
  }
}

inline void lstm_layer(const LstmParams& p, const Team& team) {
  const int64_t blocks = p.size / kLstmUnits;
  const int64_t begin = team.rank * blocks / team.size, end = (team.rank + 1) * blocks / team.size;
  for (int64_t step = 0; step < p.steps; ++step) {
    for (int64_t i = begin; i < end; ++i) step_block(p, step, step % 2 ? begin + end - 1 - i : i);
    team.wait();
  }
  for (int64_t row = 0; row < p.batch; ++row) {
    const float* last = hidden_before(p, row, p.steps);
    for (int64_t u = begin * kLstmUnits; u < end * kLstmUnits; ++u) p.hidden[row * p.size + u] = last[u];
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
