// The arguments of static_cache_attention, checked and as a plain struct, for any device.
#pragma once

#include <algorithm>
#include <cmath>

#include "checks.h"

namespace bark_accel::attention_inputs {

constexpr const char* kOp = "static_cache_attention";

inline void check_tokens(const char* name, const Tensor& t, const Tensor& query) {
  check_device(kOp, name, t, query.device());
  check_dim(kOp, name, t, 4, "[B, T, H, D]");
  check_sizes(kOp, name, t, query.sizes());
  check_same_dtype(kOp, name, t, "query", query);
  check_unit_stride(kOp, name, t);
}

inline void check_cache(const char* name, const Tensor& cache, const Tensor& query) {
  check_device(kOp, name, cache, query.device());
  check_dim(kOp, name, cache, 4, "[B, H, capacity, D]");
  check_sizes(kOp, name, cache, {query.size(0), query.size(2), cache.size(2), query.size(3)});
  check_same_dtype(kOp, name, cache, "query", query);
  check_unit_stride(kOp, name, cache);
}

// For implementations that can look at the lengths: the longest, -1 where all rows are idle.
inline int64_t check_room(const int64_t* lengths, int64_t rows, int64_t tokens, int64_t capacity) {
  int64_t longest = -1;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = lengths[row];
    BARK_CHECK(length >= -1, kOp, "expected length >= 0, or -1 for an idle row, got ", length, " in row ",
               row);
    BARK_CHECK(length <= capacity - tokens, kOp, "expected length + tokens <= capacity ", capacity, ", got ",
               length, " + ", tokens, " in row ", row);
    longest = std::max(longest, length);
  }
  return longest;
}

inline void copy_strides(int64_t (&to)[3], const Tensor& t) {
  for (int64_t i = 0; i < 3; ++i) to[i] = t.stride(i);
}

// Everything but the lengths and the output.
inline AttentionParams read(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& key_cache,
                            Tensor& value_cache, const Tensor& length) {
  AttentionParams p{};
  check_dim(kOp, "query", query, 4, "[B, T, H, D]");
  p.dtype = checked_dtype(kOp, "query", query);
  check_tokens("query", query, query);
  check_tokens("key", key, query);
  check_tokens("value", value, query);
  check_cache("key_cache", key_cache, query);
  check_cache("value_cache", value_cache, query);
  check_lengths(kOp, length, query.size(0), query.device());
  BARK_CHECK(value_cache.size(2) == key_cache.size(2), kOp, "expected caches of one capacity, got ",
             key_cache.size(2), " and ", value_cache.size(2));
  check_no_overlap(kOp, key_cache, value_cache);
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  p.query = query.const_data_ptr();
  p.key = key.const_data_ptr();
  p.value = value.const_data_ptr();
  p.key_cache = key_cache.mutable_data_ptr();
  p.value_cache = value_cache.mutable_data_ptr();
  copy_strides(p.query_strides, query);
  copy_strides(p.key_strides, key);
  copy_strides(p.value_strides, value);
  copy_strides(p.key_cache_strides, key_cache);
  copy_strides(p.value_cache_strides, value_cache);
  p.scale = float(1.0 / std::sqrt(double(p.head_dim)));
  return p;
}

}  // namespace bark_accel::attention_inputs
