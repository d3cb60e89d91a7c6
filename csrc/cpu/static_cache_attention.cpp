#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "static_cache_attention";
constexpr int64_t kDecodeTokens = 3;  // up to here every query streams the cache on its own
constexpr int64_t kMultipliesPerTask = 32768;

void check_tokens(const char* name, const at::Tensor& t, const at::Tensor& query) {
  check_cpu(kOp, name, t);
  check_dim(kOp, name, t, 4, "[B, T, H, D]");
  check_sizes(kOp, name, t, query.sizes());
  check_same_dtype(kOp, name, t, "query", query);
  check_unit_stride(kOp, name, t);
  check_no_grad(kOp, name, t);
}

void check_cache(const char* name, const at::Tensor& cache, const at::Tensor& query) {
  check_cpu(kOp, name, cache);
  check_dim(kOp, name, cache, 4, "[B, H, capacity, D]");
  check_sizes(kOp, name, cache, {query.size(0), query.size(2), cache.size(2), query.size(3)});
  check_same_dtype(kOp, name, cache, "query", query);
  check_unit_stride(kOp, name, cache);
  check_no_grad(kOp, name, cache);
}

int64_t checked_length(const at::Tensor& length, const at::Tensor& query, const at::Tensor& key_cache,
                       const at::Tensor& value_cache) {
  check_cpu(kOp, "length", length);
  BARK_CHECK(length.scalar_type() == at::kLong && length.numel() == 1 && length.dim() == 1, kOp,
             "expected length as an int64 tensor of shape [1], got ", length.scalar_type(), " of shape ",
             length.sizes());
  const int64_t value = *length.const_data_ptr<int64_t>();
  const int64_t capacity = key_cache.size(2);
  BARK_CHECK(value_cache.size(2) == capacity, kOp, "expected caches of one capacity, got ", capacity, " and ",
             value_cache.size(2));
  check_no_overlap(kOp, key_cache, value_cache);
  BARK_CHECK(value >= 0, kOp, "expected length >= 0, got ", value);
  BARK_CHECK(value <= capacity - query.size(1), kOp, "expected length + tokens <= capacity ", capacity,
             ", got ", value, " + ", query.size(1));
  return value;
}

void copy_strides(int64_t (&to)[3], const at::Tensor& t) {
  for (int64_t i = 0; i < 3; ++i) to[i] = t.stride(i);
}

void attend(const AttentionParams& p) {
  const KernelTable& table = kernels();
  const int64_t pairs = p.batch * p.heads, scratch = table.attention_scratch(p);
  const int64_t work = std::max<int64_t>(1, 2 * p.tokens * (p.length + p.tokens) * p.head_dim);
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
  AttentionParams p{};
  check_dim(kOp, "query", query, 4, "[B, T, H, D]");
  p.dtype = checked_dtype(kOp, "query", query);
  check_tokens("query", query, query);
  check_tokens("key", key, query);
  check_tokens("value", value, query);
  check_cache("key_cache", key_cache, query);
  check_cache("value_cache", value_cache, query);
  p.length = checked_length(length, query, key_cache, value_cache);
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  at::Tensor out = at::empty({p.batch, p.tokens, p.heads * p.head_dim}, query.options());
  if (out.numel() == 0) return out;
  p.query = query.const_data_ptr();
  p.key = key.const_data_ptr();
  p.value = value.const_data_ptr();
  p.key_cache = key_cache.mutable_data_ptr();
  p.value_cache = value_cache.mutable_data_ptr();
  p.out = out.mutable_data_ptr();
  copy_strides(p.query_strides, query);
  copy_strides(p.key_strides, key);
  copy_strides(p.value_strides, value);
  copy_strides(p.key_cache_strides, key_cache);
  copy_strides(p.value_cache_strides, value_cache);
  p.scale = float(1.0 / std::sqrt(double(p.head_dim)));
  attend(p);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) { m.impl("static_cache_attention", static_cache_attention); }

}  // namespace bark_accel
