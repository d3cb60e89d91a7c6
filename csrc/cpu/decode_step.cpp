#include <torch/library.h>

#include <algorithm>

#include "../decode_inputs.h"
#include "isa.h"
#include "team.h"

namespace bark_accel {
namespace {

using namespace decode_inputs;

void check_values(const DecodeInputs& in, int64_t length) {
  for (int64_t i = 0; i < in.ids.numel(); ++i) {
    const int64_t id = in.params.ids[i];
    BARK_CHECK(0 <= id && id < in.vocabulary, kOp, "expected ids in [0, ", in.vocabulary, "), got ", id);
  }
  const int64_t most = std::min(in.capacity, in.positions_count), tokens = in.params.tokens;
  BARK_CHECK(length >= 0, kOp, "expected length >= 0, got ", length);
  BARK_CHECK(length <= most - tokens, kOp, "expected length + tokens <= ", most,
             " (cache capacity and positions), got ", length, " + ", tokens);
}

at::Tensor decode_step(const at::Tensor& ids, const at::Tensor& token_table, const at::Tensor& positions,
                       const Weights& weights, at::ArrayRef<double> eps, const at::Tensor& head,
                       const std::optional<at::Tensor>& head_scales, int64_t num_heads, at::Tensor& key_cache,
                       at::Tensor& value_cache, const at::Tensor& length) {
  DecodeInputs in = read(ids, token_table, positions, weights, eps, head, head_scales, num_heads, key_cache,
                         value_cache, length, at::kCPU);
  DecodeParams& p = in.params;
  p.length = *length.const_data_ptr<int64_t>();
  check_values(in, p.length);
  if (ids.numel() == 0) return in.logits;
  const KernelTable& table = kernels();
  const int64_t threads = team_size();
  p.scratch = thread_scratch(table.decode_scratch(p, threads));
  run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  return in.logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) { m.impl("decode_step", decode_step); }

}  // namespace bark_accel
