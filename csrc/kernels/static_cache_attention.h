// Causal attention over a cache of fixed capacity, fp32 arithmetic throughout. Two kernels:
// attention_decode.h, a few queries per head at memory speed, and attention_block.h, tiles of queries x keys.
#pragma once

#include "attention_block.h"
#include "attention_decode.h"

namespace bark_accel::BARK_ACCEL_ISA {

inline int64_t attention_scratch(const AttentionParams& p) {
  const int64_t decode = queries_floats(p.head_dim, p.longest + p.tokens);
  const int64_t block =
      kBlockQueries * (p.head_dim + kTileKeys + block_dim(p) + 2) + kTileKeys * (p.head_dim + block_dim(p));
  return decode > block ? decode : block;
}

template <typename T>
void decode_pairs(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    const Pair pair = pair_at(p, i);
    if (is_idle(p, pair)) continue;
    append_pair<T>(p, pair);
    const CachedRows<T> keys{cache_of<T>(p.key_cache, p.key_cache_strides, pair), p.key_cache_strides[2]};
    const CachedRows<T> values{cache_of<T>(p.value_cache, p.value_cache_strides, pair),
                               p.value_cache_strides[2]};
    const int64_t length = p.lengths[pair.b];
    const auto start = [&](int64_t t, float* query) {
      convert(query, row_of<T>(p.query, p.query_strides, pair, t), p.head_dim);
      for (int64_t d = 0; d < p.head_dim; ++d) query[d] *= p.scale;
    };
    attend_head(scratch, head_cache(keys, values, length + p.tokens, {}, 0, p.head_dim), p.tokens, length + 1,
                p.head_dim, out_row<T>(p, pair, 0), p.heads * p.head_dim, start);
  }
}

template <typename T>
void append_pairs(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (!is_idle(p, pair_at(p, i))) append_pair<T>(p, pair_at(p, i));
  }
}

template <typename T>
void block_tasks(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t blocks = (p.tokens + kBlockQueries - 1) / kBlockQueries;
  for (int64_t i = begin; i < end; ++i) {
    const Pair pair = pair_at(p, i / blocks);
    if (!is_idle(p, pair)) block_task<T>(p, pair, i % blocks * kBlockQueries, scratch);
  }
}

inline void attention_append(const AttentionParams& p, int64_t begin, int64_t end) {
  // A copy: 16-bit types differ only in name.
  p.dtype == DType::kFloat32 ? append_pairs<float>(p, begin, end) : append_pairs<Half>(p, begin, end);
}

inline void attention_decode(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  switch (p.dtype) {
    case DType::kFloat16:
      return decode_pairs<Half>(p, begin, end, scratch);
    case DType::kBFloat16:
      return decode_pairs<BFloat16>(p, begin, end, scratch);
    default:
      return decode_pairs<float>(p, begin, end, scratch);
  }
}

inline void attention_block(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  switch (p.dtype) {
    case DType::kFloat16:
      return block_tasks<Half>(p, begin, end, scratch);
    case DType::kBFloat16:
      return block_tasks<BFloat16>(p, begin, end, scratch);
    default:
      return block_tasks<float>(p, begin, end, scratch);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
