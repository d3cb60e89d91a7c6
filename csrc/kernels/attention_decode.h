// A few queries per head: K is streamed, then V, once for up to kQueries of them, which does not show in any
// sum.
#pragma once

#include "attention_common.h"
#include "quantize.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

template <typename T>
inline float dot_row(const float* query, const T* key, int64_t head_dim) {
  VecF acc{};
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    acc += load(query + d) * (d + kWidth <= head_dim ? load(key + d) : load_first(key + d, head_dim - d));
  }
  return sum_lanes(acc);
}

constexpr int kQueries = 4;

// Keys or values of one head: row t is at rows + t * stride.
template <typename T>
struct CachedRows {
  const T* rows;
  int64_t stride;

  const T* at(int64_t t) const { return rows + t * stride; }
  CachedRows from(int64_t d) const { return {rows + d, stride}; }
};

// Multiplies factors[t] by the scale of row t, where rows have one.
template <typename T>
inline void apply_scales(CachedRows<T>, int64_t, int64_t, float*) {}

inline void apply_scales(CachedRows<int8_t> cache, int64_t head_dim, int64_t count, float* factors) {
  for (int64_t t = 0; t < count; ++t) {
    float scale;
    __builtin_memcpy(&scale, cache.at(t) + head_dim, kCacheScaleBytes);
    factors[t] *= scale;
  }
}

// Rows [0, count) that are fetched while others are read.
template <typename T>
struct Ahead {
  CachedRows<T> cache{};
  int64_t count = 0, row_bytes = 0;

  void prefetch(int64_t begin, int64_t end) const {
    for (int64_t t = begin; t < min64(end, count); ++t) {
      const char* row = reinterpret_cast<const char*>(cache.at(t));
      for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(row + byte);
    }
  }
};

// Scores of kWidth / Q keys for each of Q queries, which are padded with zeros to whole vectors.
template <typename T, int Q>
inline void score_keys(const float* queries, CachedRows<T> keys, int64_t head_dim, float* scores,
                       int64_t scores_stride) {
  constexpr int kKeys = kWidth / Q;
  const int64_t query_stride = round_up(head_dim, kWidth);
  VecF acc[kWidth] = {};
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    VecF query[Q];
    BARK_UNROLL
    for (int q = 0; q < Q; ++q) query[q] = load(queries + q * query_stride + d);
    const bool whole = d + kWidth <= head_dim;
    BARK_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const VecF key = whole ? load(keys.at(k) + d) : load_first(keys.at(k) + d, head_dim - d);
      BARK_UNROLL
      for (int q = 0; q < Q; ++q) acc[q * kKeys + k] += query[q] * key;
    }
  }
  const VecF sums = sum_each(acc);
  float lanes[kWidth];
  store(lanes, sums);
  BARK_UNROLL
  for (int q = 0; q < Q; ++q) {
    __builtin_memcpy(scores + q * scores_stride, lanes + q * kKeys, kKeys * sizeof(float));
  }
}

// out[q, 0:kVecs * kWidth) += sum_t weights[q, t] * values[t] for Q queries and t in [begin, end)
template <typename T, int Q, int kVecs>
inline void weigh_values(const float* weights, int64_t weights_stride, CachedRows<T> values, int64_t begin,
                         int64_t end, const Ahead<T>& ahead, float* out, int64_t out_stride) {
  VecF acc[Q][kVecs];
  BARK_UNROLL
  for (int q = 0; q < Q; ++q) {
    BARK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[q][j] = load(out + q * out_stride + j * kWidth);
  }
  for (int64_t t = begin; t < end; ++t) {
    ahead.prefetch(t, t + 1);
    VecF value[kVecs];
    BARK_UNROLL
    for (int j = 0; j < kVecs; ++j) value[j] = load(values.at(t) + j * kWidth);
    BARK_UNROLL
    for (int q = 0; q < Q; ++q) {
      BARK_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[q][j] += weights[q * weights_stride + t] * value[j];
    }
  }
  BARK_UNROLL
  for (int q = 0; q < Q; ++q) {
    BARK_UNROLL
    for (int j = 0; j < kVecs; ++j) store(out + q * out_stride + j * kWidth, acc[q][j]);
  }
}

// The same for a head of any size; out is padded to whole vectors.
template <typename T, int Q>
inline void weigh_head(const float* weights, int64_t weights_stride, CachedRows<T> values, int64_t begin,
                       int64_t end, int64_t head_dim, Ahead<T> ahead, float* out) {
  constexpr int kVecs = Q > 1 && kWidth < 16 ? 2 : 4;  // the accumulators of Q queries must stay in registers
  const int64_t out_stride = round_up(head_dim, kWidth);
  int64_t d = 0;
  for (; d + kVecs * kWidth <= head_dim; d += kVecs * kWidth, ahead.count = 0) {
    weigh_values<T, Q, kVecs>(weights, weights_stride, values.from(d), begin, end, ahead, out + d,
                              out_stride);
  }
  for (; d + kWidth <= head_dim; d += kWidth, ahead.count = 0) {
    weigh_values<T, Q, 1>(weights, weights_stride, values.from(d), begin, end, ahead, out + d, out_stride);
  }
  for (int q = 0; d < head_dim && q < Q; ++q) {
    VecF acc = load(out + q * out_stride + d);
    for (int64_t t = begin; t < end; ++t) {
      acc += weights[q * weights_stride + t] * load_first(values.at(t) + d, head_dim - d);
    }
    store(out + q * out_stride + d, acc);
  }
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
// Floats of scratch for attend_queries where no query sees more than `longest` positions.
inline int64_t queries_floats(int64_t head_dim, int64_t longest) {
  return kQueries * (2 * round_up(head_dim, kWidth) + round_up(longest, kWidth));
}

// Keys and values of one head, and what to fetch while each is read.
template <typename T>
struct HeadCache {
  CachedRows<T> keys, values;
  Ahead<T> beside_keys{}, beside_values{};
};

constexpr int64_t kRowsAhead = 2 * kWidth;  // of one stream

// `count` positions of a head, and `next_count` of the keys that are read behind it. Of caches of up to 16
// bits a whole stream is fetched ahead: the values beside the keys, the next keys beside the values. With 32
// bits that is slower than a few rows ahead.
template <typename T>
inline HeadCache<T> head_cache(CachedRows<T> keys, CachedRows<T> values, int64_t count,
                               CachedRows<T> next_keys, int64_t next_count, int64_t head_dim) {
  const int64_t bytes = row_bytes<T>(head_dim);
  if (sizeof(T) <= 2) return {keys, values, {values, count, bytes}, {next_keys, next_count, bytes}};
  const auto further = [&](CachedRows<T> cache) -> Ahead<T> {
    return {{cache.at(kRowsAhead), cache.stride}, count - kRowsAhead, bytes};
  };
  return {keys, values, further(keys), further(values)};
}

// Query q of Q sees `count` + q positions. `queries`: the start of the scratch, queries already scaled, each
// with room for whole vectors.
template <int Q, typename T, typename Out>
void attend_queries(float* queries, const HeadCache<T>& cache, int64_t count, int64_t head_dim, Out* out,
                    int64_t out_stride) {
  const int64_t padded_dim = round_up(head_dim, kWidth), padded_count = round_up(count + Q - 1, kWidth);
  const CachedRows<T> keys = cache.keys, values = cache.values;
  float* results = queries + Q * padded_dim;
  float* scores = results + Q * padded_dim;
  for (int q = 0; q < Q; ++q) {
    for (int64_t d = head_dim; d < padded_dim; ++d) queries[q * padded_dim + d] = 0;
  }
  int64_t t = 0;
  for (; t + kWidth / Q <= count; t += kWidth / Q) {
    cache.beside_keys.prefetch(t, t + kWidth / Q);
    score_keys<T, Q>(queries, {keys.at(t), keys.stride}, head_dim, scores + t, padded_count);
  }
  float sums[Q];
  for (int q = 0; q < Q; ++q) {
    for (int64_t k = t; k < count + q; ++k) {
      scores[q * padded_count + k] = dot_row(queries + q * padded_dim, keys.at(k), head_dim);
    }
    apply_scales(keys, head_dim, count + q, scores + q * padded_count);
    sums[q] = softmax_numerators(scores + q * padded_count, count + q);
    apply_scales(values, head_dim, count + q, scores + q * padded_count);
  }
  __builtin_memset(results, 0, Q * padded_dim * sizeof(float));
  weigh_head<T, Q>(scores, padded_count, values, 0, count, head_dim, cache.beside_values, results);
  for (int q = 1; q < Q; ++q) {
    weigh_head<T, 1>(scores + q * padded_count, padded_count, values, count, count + q, head_dim, {},
                     results + q * padded_dim);
  }
  for (int q = 0; q < Q; ++q) {
    for (int64_t d = 0; d < head_dim; d += kWidth) {
      store_first(out + q * out_stride + d, load(results + q * padded_dim + d) / sums[q],
                  min64(kWidth, head_dim - d));
    }
  }
}

// What `tokens` queries of a head see, of which the first sees `count` positions. start(t, query) writes
// query t, scaled, to the scratch.
template <typename T, typename Out, typename Start>
void attend_head(float* scratch, HeadCache<T> cache, int64_t tokens, int64_t count, int64_t head_dim,
                 Out* out, int64_t out_stride, const Start& start) {
  const int64_t padded_dim = round_up(head_dim, kWidth);
  int64_t t = 0;
  // Later queries find the cache near.
  for (; t + kQueries <= tokens; t += kQueries, cache.beside_keys = cache.beside_values = {}) {
    for (int q = 0; q < kQueries; ++q) start(t + q, scratch + q * padded_dim);
    attend_queries<kQueries>(scratch, cache, count + t, head_dim, out + t * out_stride, out_stride);
  }
  for (; t < tokens; ++t, cache.beside_keys = cache.beside_values = {}) {
    start(t, scratch);
    attend_queries<1>(scratch, cache, count + t, head_dim, out + t * out_stride, out_stride);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
