#include <algorithm>
#include <cstring>

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
    parallel_for(0, pairs, std::max<int64_t>(1, kMultipliesPerTask / work), [&](int64_t begin, int64_t end) {
      table.attention_decode(p, begin, end, thread_scratch(scratch));
    });
    return;
  }
  // All appends come first: a block task reads positions that other tasks of its head own.
  parallel_for(0, pairs, std::max<int64_t>(1, kMultipliesPerTask / (p.tokens * p.head_dim)),
               [&](int64_t begin, int64_t end) { table.attention_append(p, begin, end); });
  const int64_t blocks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
  parallel_for(
      0, pairs * blocks, std::max<int64_t>(1, kMultipliesPerTask * blocks / work),
      [&](int64_t begin, int64_t end) { table.attention_block(p, begin, end, thread_scratch(scratch)); });
}

Tensor static_cache_attention(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& key_cache,
                              Tensor& value_cache, const Tensor& length) {
  AttentionParams p = read(query, key, value, key_cache, value_cache, length);
  const Tensor lengths = contiguous(length);
  p.lengths = lengths.const_data_ptr<int64_t>();
  p.longest = check_room(p.lengths, p.batch, p.tokens, key_cache.size(2));
  p.keys = p.longest + p.tokens;
  Tensor out = empty({p.batch, p.tokens, p.heads * p.head_dim}, query.scalar_type(), query.device());
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  attend(p);
  const int64_t row_bytes = p.tokens * p.heads * p.head_dim * out.element_size();
  for (int64_t row = 0; row < p.batch; ++row) {
    // All bits set is NaN in every dtype.
    if (p.lengths[row] < 0) std::memset(static_cast<char*>(p.out) + row * row_bytes, 0xff, row_bytes);
  }
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<static_cache_attention>("static_cache_attention")});

}  // namespace bark_accel
