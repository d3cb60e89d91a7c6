#include <algorithm>
#include <limits>

#include "../decode_inputs.h"
#include "isa.h"
#include "step_team.h"
#include "team.h"

namespace bark_accel {
namespace {

using namespace decode_inputs;

constexpr int64_t kPassTokens = 16;  // that share one reading of the weights

// The rows that are not idle, once their ids and lengths are known to fit.
std::vector<int64_t> checked_slots(const DecodeInputs& in) {
  const int64_t most = std::min(in.capacity, in.positions_count), tokens = in.params.tokens;
  std::vector<int64_t> slots;
  for (int64_t row = 0; row < in.params.batch; ++row) {
    const int64_t length = in.params.lengths[row];
    BARK_CHECK(length >= -1, kOp, "expected length >= 0, or -1 for an idle row, got ", length, " in row ",
               row);
    BARK_CHECK(length <= most - tokens, kOp, "expected length + tokens <= ", most,
               " (cache capacity and positions), got ", length, " + ", tokens, " in row ", row);
    for (int64_t i = row * tokens; i < (row + 1) * tokens && length >= 0; ++i) {
      const int64_t id = in.params.ids[i];
      BARK_CHECK(0 <= id && id < in.vocabulary, kOp, "expected ids in [0, ", in.vocabulary, "), got ", id);
    }
    if (length >= 0) slots.push_back(row);
  }
  return slots;
}

// Logits of the rows `slots`, one after the other from p.logits on.
void run_slots(DecodeParams p, const std::vector<int64_t>& slots) {
  const KernelTable& table = kernels();
  const int64_t rows = int64_t(slots.size());
  const int64_t most = std::max<int64_t>(1, kPassTokens / p.tokens);
  for (const int64_t slot : slots) p.longest = std::max(p.longest, p.lengths[slot]);
  for (int64_t first = 0; first < rows; first += most) {
    p.batch = std::min(most, rows - first);
    p.slots = slots.data() + first;
    const StepTeam step(p);
    p.scratch = thread_scratch(table.decode_scratch(p, step.threads()));
    run_team(step.threads(), [&](const Team& team) { table.decode_step(p, team); });
    p.logits += p.batch * p.tokens * p.head_rows;
  }
}

// Moves the rows that stand first to their slots, NaN into all others.
void spread_rows(float* logits, int64_t width, const std::vector<int64_t>& slots, int64_t batch) {
  int64_t from = int64_t(slots.size()) - 1;
  for (int64_t row = batch - 1; row >= 0; --row) {
    float* to = logits + row * width;
    if (from < 0 || slots[from] != row) {
      std::fill_n(to, width, std::numeric_limits<float>::quiet_NaN());
    } else if (from-- != row) {
      std::copy_n(logits + (from + 1) * width, width, to);
    }
  }
}

Tensor decode_step(const Tensor& ids, const Tensor& token_table, const Tensor& positions,
                   const Weights& weights, const std::vector<double>& eps, const Tensor& head,
                   const std::optional<Tensor>& head_scales, int64_t num_heads, Tensor& key_cache,
                   Tensor& value_cache, const Tensor& length) {
  DecodeInputs in = read(ids, token_table, positions, weights, eps, head, head_scales, num_heads, key_cache,
                         value_cache, length, kCPU);
  const std::vector<int64_t> slots = checked_slots(in);
  if (ids.numel() == 0) return in.logits;
  run_slots(in.params, slots);
  const int64_t rows = int64_t(slots.size());
  if (rows == in.params.batch) return in.logits;
  spread_rows(in.params.logits, in.params.tokens * in.params.head_rows, slots, in.params.batch);
  return in.logits;
}

}  // namespace

const Implementations registered("CPU", {implement<decode_step>("decode_step")});

}  // namespace bark_accel
