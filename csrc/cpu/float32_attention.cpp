// The blocks of static_cache_attention over keys and values that stand anywhere.

#include <cmath>
#include <vector>

#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "float32_attention";
constexpr int64_t kMultipliesPerTask = 1 << 20;

void check_floats(const char* name, const Tensor& t, const char* shape) {
  check_cpu(kOp, name, t);
  check_dim(kOp, name, t, 4, shape);
  BARK_CHECK(t.scalar_type() == kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  check_unit_stride(kOp, name, t);
}

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value, bool causal) {
  check_floats("query", query, "[B, T, H, D]");
  check_floats("key", key, "[B, H, S, D]");
  check_floats("value", value, "[B, H, S, D]");
  BARK_CHECK(query.size(3) >= 1, kOp, "expected a head size of at least 1, got ", query.size(3));
  BARK_CHECK(key.size(2) >= 1, kOp, "expected at least one key, got ", key.size(2));
  check_sizes(kOp, "key", key, {query.size(0), query.size(2), key.size(2), query.size(3)});
  check_sizes(kOp, "value", value, key.sizes());
  BARK_CHECK(!causal || key.size(2) >= query.size(1), kOp, "expected at least as many keys as queries (",
             query.size(1), ") with causal=True, got ", key.size(2));
}

Tensor float32_attention(const Tensor& query, const Tensor& key, const Tensor& value, bool causal) {
  check_inputs(query, key, value, causal);
  const KernelTable& table = kernels();
  AttentionParams p{};
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  p.keys = key.size(2);
  const std::vector<int64_t> lengths(p.batch, causal ? p.keys - p.tokens : p.keys);
  p.lengths = lengths.data();
  p.longest = p.keys;
  p.scale = float(1.0 / std::sqrt(double(p.head_dim)));
  p.dtype = DType::kFloat32;
  Tensor out = empty({p.batch, p.tokens, p.heads * p.head_dim}, query.scalar_type(), query.device());
  if (out.numel() == 0) return out;
  p.query = query.const_data_ptr();
  p.key_cache = const_cast<void*>(key.const_data_ptr());  // blocks only read them
  p.value_cache = const_cast<void*>(value.const_data_ptr());
  p.out = out.mutable_data_ptr();
  for (int64_t i = 0; i < 3; ++i) {
    p.query_strides[i] = query.stride(i);
    p.key_cache_strides[i] = key.stride(i);
    p.value_cache_strides[i] = value.stride(i);
  }
  const int64_t blocks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
  const int64_t work = 2 * std::min(p.tokens, table.attention_block_queries) * p.keys * p.head_dim;
  parallel_for(0, p.batch * p.heads * blocks, std::max<int64_t>(1, kMultipliesPerTask / work),
               [&](int64_t begin, int64_t end) {
                 table.attention_block(p, begin, end, thread_scratch(table.attention_scratch(p)));
               });
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<float32_attention>("float32_attention")});

}  // namespace bark_accel
