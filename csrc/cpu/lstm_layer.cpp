#include "../checks.h"
#include "isa.h"
#include "team.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "lstm_layer";
constexpr int64_t kWeightsPerThread = 1 << 16;  // fewer would wait more than multiply

void check_floats(const char* name, const Tensor& t, Sizes sizes) {
  check_cpu(kOp, name, t);
  check_sizes(kOp, name, t, sizes);
  BARK_CHECK(t.scalar_type() == kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  check_contiguous(kOp, name, t);
}

void check_inputs(const Tensor& gates, const Tensor& weight, const Tensor& hidden, const Tensor& cell) {
  check_dim(kOp, "weight", weight, 4, "[H / 16, H, 4, 16]");
  const int64_t size = weight.size(1);
  BARK_CHECK(size > 0 && size % kLstmUnits == 0, kOp,
             "expected weight of shape [H / 16, H, 4, 16] with H a multiple of 16, got ", weight.sizes());
  check_floats("weight", weight, {size / kLstmUnits, size, 4, kLstmUnits});
  check_dim(kOp, "gates", gates, 3, "[B, T, 4 * H]");
  check_floats("gates", gates, {gates.size(0), gates.size(1), 4 * size});
  check_floats("hidden", hidden, {gates.size(0), size});
  check_floats("cell", cell, {gates.size(0), size});
  BARK_CHECK(!overlap(hidden, cell), kOp,
             "expected hidden and cell in separate memory, got overlapping ones");
}

Tensor lstm_layer(const Tensor& gates, const Tensor& weight, const Tensor& hidden, const Tensor& cell) {
  check_inputs(gates, weight, hidden, cell);
  LstmParams p{};
  p.batch = gates.size(0);
  p.steps = gates.size(1);
  p.size = weight.size(1);
  Tensor out = empty({p.batch, p.steps, p.size}, kFloat);
  if (out.numel() == 0) return out;
  p.gates = gates.const_data_ptr<float>();
  p.weight = weight.const_data_ptr<float>();
  p.hidden = hidden.mutable_data_ptr<float>();
  p.cell = cell.mutable_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  const int64_t most = std::max<int64_t>(1, 4 * p.size * p.size / kWeightsPerThread);
  const KernelTable& table = kernels();
  run_team(std::min(team_size(), most), [&](const Team& team) { table.lstm_layer(p, team); });
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<lstm_layer>("lstm_layer")});

}  // namespace bark_accel
