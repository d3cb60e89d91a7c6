#include <cmath>

#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "int16_attention";
constexpr int64_t kMultipliesPerTask = 1 << 20;

void check_keys(const char* name, const Tensor& t, const Tensor& query, const Tensor& key) {
  check_cpu(kOp, name, t);
  check_dim(kOp, name, t, 4, "[B, H, S, D]");
  check_sizes(kOp, name, t, {query.size(0), query.size(2), key.size(2), query.size(3)});
  checked_dtype(kOp, name, t);
  check_same_dtype(kOp, name, t, "key", key);
  check_unit_stride(kOp, name, t);
}

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value, bool causal) {
  const int64_t largest = kernels().int16_group;
  check_cpu(kOp, "query", query);
  check_dim(kOp, "query", query, 4, "[B, T, H, D]");
  BARK_CHECK(query.scalar_type() == kFloat, kOp, "expected query of dtype float32, got ",
             query.scalar_type());
  BARK_CHECK(query.size(3) >= 1 && query.size(3) <= largest, kOp, "expected a head size of 1 to ", largest,
             ", got ", query.size(3));
  check_unit_stride(kOp, "query", query);
  check_dim(kOp, "key", key, 4, "[B, H, S, D]");
  check_keys("key", key, query, key);
  check_keys("value", value, query, key);
  BARK_CHECK(key.size(2) >= 1, kOp, "expected at least one key, got ", key.size(2));
  BARK_CHECK(!causal || key.size(2) >= query.size(1), kOp, "expected at least as many keys as queries (",
             query.size(1), ") with causal=True, got ", key.size(2));
}

Tensor int16_attention(const Tensor& query, const Tensor& key, const Tensor& value, bool causal) {
  check_inputs(query, key, value, causal);
  const KernelTable& table = kernels();
  Int16AttentionParams p{};
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  p.keys = key.size(2);
  p.causal = causal;
  p.scale = float(1.0 / std::sqrt(double(p.head_dim)));
  p.dtype = checked_dtype(kOp, "key", key);
  Tensor out = empty({p.batch, p.tokens, p.heads * p.head_dim}, query.scalar_type(), query.device());
  if (out.numel() == 0) return out;
  p.query = query.const_data_ptr<float>();
  p.key = key.const_data_ptr();
  p.value = value.const_data_ptr();
  p.out = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < 3; ++i) {
    p.query_strides[i] = query.stride(i);
    p.key_strides[i] = key.stride(i);
    p.value_strides[i] = value.stride(i);
  }
  Tensor packed = empty({table.int16_attention_packed_bytes(p)}, kByte);
  p.packed = packed.mutable_data_ptr();
  const int64_t pairs = p.batch * p.heads, groups = (p.keys + table.int16_group - 1) / table.int16_group;
  parallel_for(0, pairs * groups, 1,
               [&](int64_t begin, int64_t end) { table.int16_attention_pack(p, begin, end); });
  const int64_t panels = (p.tokens + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t work = 2 * table.int16_panel_rows * p.keys * p.head_dim;
  parallel_for(0, pairs * panels, std::max<int64_t>(1, kMultipliesPerTask / work),
               [&](int64_t begin, int64_t end) {
                 table.int16_attention(p, begin, end, thread_scratch(table.int16_attention_scratch(p)));
               });
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<int16_attention>("int16_attention")});

}  // namespace bark_accel
