// Attention over a cache, over keys and values of one projection, and in int16.
#pragma once

#include "common.h"

namespace cpu_cases {

// softmax(query * key^T * scale) * value of one query over `count` positions; key and value give (position,
// d).
template <class Query, class Key, class Value>
std::vector<double> attend(const Query& query, const Key& key, const Value& value, int64_t count,
                           int64_t depth) {
  std::vector<double> out(depth);
  double total = 0;
  for (int64_t s = 0; s < count; ++s) {
    double score = 0;
    for (int64_t d = 0; d < depth; ++d) score += query(d) * key(s, d);
    const double weight = std::exp(score / std::sqrt(double(depth)));
    total += weight;
    for (int64_t d = 0; d < depth; ++d) out[d] += weight * value(s, d);
  }
  for (double& x : out) x /= total;
  return out;
}

inline void attention(Run& run) {
  const KernelTable& table = any_table(run);
  AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 3);
  p.head_dim = run.pick<int64_t>({1, 3, 8, 16, 20, 32, 64, 65, 130});
  const bool block = run.coin();
  p.tokens = block ? run.pick<int64_t>({1, 2, 33, 64, 65, 100}) : run.integer(1, 3);
  const int64_t longest = run.size(220) - 1;
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < p.batch; ++b) lengths.push_back(b > 0 ? run.integer(-1, longest) : longest);
  p.lengths = lengths.data();
  p.longest = longest;
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = any_float(run);
  const int64_t width = p.heads * p.head_dim, capacity = p.keys = longest + p.tokens;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.value_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_cache_strides, p.heads, capacity, p.head_dim);
  fill_strides(p.value_cache_strides, p.heads, capacity, p.head_dim);
  const int64_t rows = p.batch * p.tokens;
  Numbers query(run, rows * width, p.dtype), key(run, rows * width, p.dtype),
      value(run, rows * width, p.dtype);
  Numbers keys(run, p.batch * capacity * width, p.dtype), values(run, p.batch * capacity * width, p.dtype);
  Blocks to;
  p.query = query.exact(to);
  p.key = key.exact(to);
  p.value = value.exact(to);
  p.key_cache = keys.exact(to);
  p.value_cache = values.exact(to);
  p.out = to.exact(query.matrix.storage);
  const int64_t pairs = p.batch * p.heads;
  if (block) {
    const int64_t tasks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
    parallel(run, pairs, [&](int64_t begin, int64_t end) { table.attention_append(p, begin, end); });
    parallel(run, pairs * tasks, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(table.attention_scratch(p));
      table.attention_block(p, begin, end, scratch.data());
    });
  } else {
    parallel(run, pairs, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(table.attention_scratch(p));
      table.attention_decode(p, begin, end, scratch.data());
    });
  }
  const double tolerance = p.dtype == DType::kFloat32 ? 2e-6 : p.dtype == DType::kFloat16 ? 1e-3 : 8e-3;
  for (int64_t i = 0; i < rows * p.heads; ++i) {
    const int64_t h = i % p.heads, row = i / p.heads, t = row % p.tokens, b = row / p.tokens;
    if (lengths[b] < 0) continue;
    // Element d of position s: from the cache, or among the new tokens.
    const auto at = [&](const Numbers& old, const Numbers& fresh) {
      return [&, h, b](int64_t s, int64_t d) {
        return s < lengths[b] ? old[((b * p.heads + h) * capacity + s) * p.head_dim + d]
                              : fresh[((b * p.tokens + s - lengths[b]) * p.heads + h) * p.head_dim + d];
      };
    };
    const auto expected = attend([&](int64_t d) { return query[i * p.head_dim + d]; }, at(keys, key),
                                 at(values, value), lengths[b] + t + 1, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      double got = 0;
      with_float_type(p.dtype, [&](auto zero) {
        got = to_float(static_cast<decltype(zero)*>(p.out)[i * p.head_dim + d]);
      });
      run.expect_close(got, expected[d], 1, tolerance, "attention " + std::to_string(i));
    }
  }
}

// The blocks alone, over keys and values of one projection, of which every query sees all or those before it.
inline void attention_anywhere(Run& run) {
  const KernelTable& table = any_table(run);
  AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 3);
  p.head_dim = run.pick<int64_t>({1, 3, 16, 20, 32, 64, 65});
  p.tokens = run.pick<int64_t>({1, 2, 33, 64, 65, 100});
  p.keys = p.tokens + run.size(200) - 1;
  const bool causal = run.coin();
  const std::vector<int64_t> lengths(p.batch, causal ? p.keys - p.tokens : p.keys);
  p.lengths = lengths.data();
  p.longest = lengths[0];
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = DType::kFloat32;
  const int64_t width = p.heads * p.head_dim;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  for (int64_t* strides : {p.key_cache_strides, p.value_cache_strides}) {  // [B, S, H, D]
    strides[0] = p.keys * width;
    strides[1] = p.head_dim;
    strides[2] = width;
  }
  const std::vector<float> query = random_floats(run, p.batch * p.tokens * width);
  Numbers keys(run, p.batch * p.keys * width, p.dtype), values(run, p.batch * p.keys * width, p.dtype);
  Blocks to;
  p.query = to.exact(query);
  p.key_cache = keys.exact(to);
  p.value_cache = values.exact(to);
  p.out = to.result<float>(p.batch * p.tokens * width);
  const int64_t tasks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
  parallel(run, p.batch * p.heads * tasks, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.attention_scratch(p));
    table.attention_block(p, begin, end, scratch.data());
  });
  for (int64_t i = 0; i < p.batch * p.tokens * p.heads; ++i) {
    const int64_t h = i % p.heads, t = i / p.heads % p.tokens, b = i / p.heads / p.tokens;
    const auto at = [&](const Numbers& x) {
      return [&, h, b](int64_t s, int64_t d) { return x[((b * p.keys + s) * p.heads + h) * p.head_dim + d]; };
    };
    const int64_t seen = causal ? lengths[b] + t + 1 : p.keys;
    const auto expected = attend([&](int64_t d) { return double(query[i * p.head_dim + d]); }, at(keys),
                                 at(values), seen, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const float got = static_cast<float*>(p.out)[i * p.head_dim + d];
      run.expect_close(got, expected[d], 1, 2e-6, "attention anywhere " + std::to_string(i));
    }
  }
}

inline void int16_attention(Run& run) {
  const KernelTable& table = any_table(run);
  Int16AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 2);
  p.head_dim = run.pick<int64_t>({1, 3, 16, 20, 64, 65});
  p.tokens = run.pick<int64_t>({1, 2, 5, 17});
  p.keys = p.tokens + run.size(300) - 1;
  p.causal = run.coin();
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = any_float(run);
  const int64_t width = p.heads * p.head_dim;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_strides, p.heads, p.keys, p.head_dim);
  fill_strides(p.value_strides, p.heads, p.keys, p.head_dim);
  const std::vector<float> query = random_floats(run, p.batch * p.tokens * width);
  Numbers keys(run, p.batch * p.keys * width, p.dtype), values(run, p.batch * p.keys * width, p.dtype);
  Blocks to;
  p.query = to.exact(query);
  p.key = keys.exact(to);
  p.value = values.exact(to);
  p.out = to.result<float>(p.batch * p.tokens * width);
  p.packed = to.empty<int32_t>(table.int16_attention_packed_bytes(p) / 4);
  const int64_t pairs = p.batch * p.heads, groups = (p.keys + table.int16_group - 1) / table.int16_group;
  const int64_t panels = (p.tokens + table.int16_panel_rows - 1) / table.int16_panel_rows;
  parallel(run, pairs * groups,
           [&](int64_t begin, int64_t end) { table.int16_attention_pack(p, begin, end); });
  parallel(run, pairs * panels, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.int16_attention_scratch(p));
    table.int16_attention(p, begin, end, scratch.data());
  });
  for (int64_t i = 0; i < p.batch * p.tokens * p.heads; ++i) {
    const int64_t h = i % p.heads, row = i / p.heads, base = (row / p.tokens * p.heads + h) * p.keys;
    const auto at = [&](const Numbers& x) {
      return [&, base](int64_t s, int64_t d) { return x[(base + s) * p.head_dim + d]; };
    };
    const int64_t seen = p.causal ? p.keys - p.tokens + row % p.tokens + 1 : p.keys;
    const auto expected = attend([&](int64_t d) { return double(query[i * p.head_dim + d]); }, at(keys),
                                 at(values), seen, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      run.expect_close(p.out[i * p.head_dim + d], expected[d], 1, 1e-3,
                       "int16 attention " + std::to_string(i));
    }
  }
}

}  // namespace cpu_cases
