#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "../attention_inputs.h"
#include "isa.h"

namespace bark_accel {
namespace {

using namespace attention_inputs;

constexpr int64_t kDecodeTokens = 3;  // up to here every query streams the cache on its own
constexpr int64_t kMultipliesPerTask = 32768;

void attend(const AttentionParams& p) {
  const KernelTable& table = kernels();
  const int64_t pairs = p.batch * p.heads, scratch = table.attention_scratch(p);
  const int64_t work = std::max<int64_t>(1, 2 * p.tokens * (p.longest + p.tokens) * p.head_dim);
  if (p.tokens <= kDecodeTokens) {
    at::parallel_for(
        0, pairs, std::max<int64_t>(1, kMultipliesPerTask / work),
        [&](int64_t begin, int64_t end) { table.attention_decode(p, begin, end, thread_scratch(scratch)); });
    return;
  }
  // All appends come first: a block task reads positions that other tasks of its head own.
  at::parallel_for(0, pairs, std::max<int64_t>(1, kMultipliesPerTask / (p.tokens * p.head_dim)),
                   [&](int64_t begin, int64_t end) { table.attention_append(p, begin, end); });
  const int64_t blocks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
  at::parallel_for(
      0, pairs * blocks, std::max<int64_t>(1, kMultipliesPerTask * blocks / work),
      [&](int64_t begin, int64_t end) { table.attention_block(p, begin, end, thread_scratch(scratch)); });
}

at::Tensor static_cache_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  at::Tensor& key_cache, at::Tensor& value_cache, const at::Tensor& length) {
  AttentionParams p = read(query, key, value, key_cache, value_cache, length);
  const at::Tensor lengths = length.contiguous();
  p.lengths = lengths.const_data_ptr<int64_t>();
  p.longest = check_room(p.lengths, p.batch, p.tokens, key_cache.size(2));
  p.keys = p.longest + p.tokens;
  at::Tensor out = at::empty({p.batch, p.tokens, p.heads * p.head_dim}, query.options());
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  attend(p);
  for (int64_t row = 0; row < p.batch; ++row) {
    if (p.lengths[row] < 0) out.select(0, row).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) { m.impl("static_cache_attention", static_cache_attention); }

}  // namespace bark_accel
