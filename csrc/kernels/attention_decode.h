// A few queries per head: each streams K, then V, once.
#pragma once

#include "attention_common.h"

namespace bark_accel::BARK_ACCEL_ISA {

template <typename T>
inline float dot_row(const float* query, const T* key, int64_t head_dim) {
  VecF acc{};
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    acc += load(query + d) * (d + kWidth <= head_dim ? load(key + d) : load_first(key + d, head_dim - d));
  }
  return sum_lanes(acc);
}

constexpr int64_t kAhead = 2 * kWidth;  // cached rows; a tenth faster where the cache comes from memory

// Asks for row `t` of `count` of a cache.
template <typename T>
inline void prefetch_row(const T* rows, int64_t stride, int64_t t, int64_t count, int64_t head_dim) {
  if (t >= count) return;
  const char* row = reinterpret_cast<const char*>(rows + t * stride);
  for (int64_t byte = 0; byte < head_dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(row + byte);
}

// kWidth scores at once; `query` is padded with zeros to whole vectors.
template <typename T>
inline VecF dot_rows(const float* query, const T* keys, int64_t stride, int64_t head_dim) {
  VecF acc[kWidth] = {};
  int64_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) {
    const VecF q = load(query + d);
    BARK_UNROLL
    for (int r = 0; r < kWidth; ++r) acc[r] += q * load(keys + r * stride + d);
  }
  if (d < head_dim) {
    const VecF q = load(query + d);
    BARK_UNROLL
    for (int r = 0; r < kWidth; ++r) acc[r] += q * load_first(keys + r * stride + d, head_dim - d);
  }
  return sum_each(acc);
}

// out[0, kVecs * kWidth) = sum_t weights[t] * values[t]
template <typename T, int kVecs>
inline void weighted_rows(const float* weights, const T* values, int64_t stride, int64_t count, float* out) {
  VecF acc[kVecs] = {};
  for (int64_t t = 0; t < count; ++t) {
    prefetch_row(values, stride, t + kAhead, count, kVecs * kWidth);
    BARK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[j] += weights[t] * load(values + t * stride + j * kWidth);
  }
  BARK_UNROLL
  for (int j = 0; j < kVecs; ++j) store(out + j * kWidth, acc[j]);
}

template <typename T>
inline void weighted_tail(const float* weights, const T* values, int64_t stride, int64_t count, int64_t lanes,
                          float* out) {
  VecF acc{};
  for (int64_t t = 0; t < count; ++t) acc += weights[t] * load_first(values + t * stride, lanes);
  store(out, acc);
}

// Scores to e^(score - max), padded; returns the sum. NaN scores stay NaN.
inline float softmax_numerators(float* scores, int64_t count) {
  const int64_t padded = round_up(count, kWidth);
  for (int64_t i = count; i < padded; ++i) scores[i] = -kInfinity;
  VecF top = splat(-kInfinity);
  for (int64_t i = 0; i < padded; i += kWidth) top = vmax(top, load(scores + i));
  float max = max_lanes(top);
  if (max == -kInfinity) max = 0;  // all -inf: 0 / 0 below gives NaN, as in torch
  VecF sum{};
  for (int64_t i = 0; i < padded; i += kWidth) {
    const VecF e = vexp(load(scores + i) - max);
    store(scores + i, e);
    sum += e;
  }
  return sum_lanes(sum);
}

// One query [D], scaled, over `count` positions; `query` is the start of scratch that holds, after it, D
// floats for the result and `count` scores, each rounded up to kWidth.
template <typename T, typename Out>
void attend_query(float* query, const T* keys, int64_t key_stride, const T* values, int64_t value_stride,
                  int64_t count, int64_t head_dim, Out* out) {
  const int64_t padded_dim = round_up(head_dim, kWidth);
  float* result = query + padded_dim;
  float* scores = query + 2 * padded_dim;
  for (int64_t d = head_dim; d < padded_dim; ++d) query[d] = 0;

  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    for (int r = 0; r < kWidth; ++r) prefetch_row(keys, key_stride, i + kAhead + r, count, head_dim);
    store(scores + i, dot_rows(query, keys + i * key_stride, key_stride, head_dim));
  }
  for (; i < count; ++i) scores[i] = dot_row(query, keys + i * key_stride, head_dim);
  for (int64_t t = 0; t < kAhead; ++t) prefetch_row(values, value_stride, t, count, head_dim);
  const float sum = softmax_numerators(scores, count);

  int64_t d = 0;
  for (; d + 8 * kWidth <= head_dim; d += 8 * kWidth) {
    weighted_rows<T, 8>(scores, values + d, value_stride, count, result + d);
  }
  for (; d + 4 * kWidth <= head_dim; d += 4 * kWidth) {
    weighted_rows<T, 4>(scores, values + d, value_stride, count, result + d);
  }
  for (; d + kWidth <= head_dim; d += kWidth) {
    weighted_rows<T, 1>(scores, values + d, value_stride, count, result + d);
  }
  if (d < head_dim) weighted_tail(scores, values + d, value_stride, count, head_dim - d, result + d);

  for (d = 0; d < head_dim; d += kWidth) {
    store_first(out + d, load(result + d) / sum, min64(kWidth, head_dim - d));
  }
}

template <typename T>
void decode_query(const AttentionParams& p, Pair pair, int64_t t, float* scratch) {
  convert(scratch, row_of<T>(p.query, p.query_strides, pair, t), p.head_dim);
  for (int64_t d = 0; d < p.head_dim; ++d) scratch[d] *= p.scale;
  attend_query(scratch, cache_of<T>(p.key_cache, p.key_cache_strides, pair), p.key_cache_strides[2],
               cache_of<T>(p.value_cache, p.value_cache_strides, pair), p.value_cache_strides[2],
               p.lengths[pair.b] + t + 1, p.head_dim, out_row<T>(p, pair, t));
}

}  // namespace bark_accel::BARK_ACCEL_ISA
