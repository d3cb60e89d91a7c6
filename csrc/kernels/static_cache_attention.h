// Causal attention over a cache of fixed capacity. Two kernels share the arithmetic (fp32 throughout):
//   decode: a few queries per head; each query streams K then V once, at memory speed.
//   block:  tiles of queries x keys with an online softmax. Scores are kept transposed (keys x queries), so keys are
//           broadcast straight from the cache and the softmax runs over rows without any horizontal step.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kLanes = 2 * kWidth;      // queries per micro tile
constexpr int64_t kBlockQueries = 64;       // queries per task
constexpr int64_t kTileKeys = 96;           // a multiple of both kKeyRows below
constexpr int64_t kMicroTiles = kBlockQueries / kLanes;
constexpr int kKeyRows = kWidth == 16 ? 12 : 6;   // accumulators: 2 * rows, within the register file
constexpr int kQueryRows = kWidth == 16 ? 8 : 4;

struct Pair {
  int64_t b, h;
};

inline Pair pair_at(const AttentionParams& p, int64_t index) { return {index / p.heads, index % p.heads}; }

template <typename T>
inline const T* row_of(const void* base, const int64_t* strides, Pair pair, int64_t t) {
  return static_cast<const T*>(base) + pair.b * strides[0] + t * strides[1] + pair.h * strides[2];
}

template <typename T>
inline T* cache_of(void* base, const int64_t* strides, Pair pair) {
  return static_cast<T*>(base) + pair.b * strides[0] + pair.h * strides[1];
}

template <typename T>
inline T* out_row(const AttentionParams& p, Pair pair, int64_t t) {
  return static_cast<T*>(p.out) + ((pair.b * p.tokens + t) * p.heads + pair.h) * p.head_dim;
}

template <typename T>
void append_pair(const AttentionParams& p, Pair pair) {
  T* keys = cache_of<T>(p.key_cache, p.key_cache_strides, pair) + p.length * p.key_cache_strides[2];
  T* values = cache_of<T>(p.value_cache, p.value_cache_strides, pair) + p.length * p.value_cache_strides[2];
  for (int64_t t = 0; t < p.tokens; ++t) {
    __builtin_memcpy(keys + t * p.key_cache_strides[2], row_of<T>(p.key, p.key_strides, pair, t),
                     p.head_dim * sizeof(T));
    __builtin_memcpy(values + t * p.value_cache_strides[2], row_of<T>(p.value, p.value_strides, pair, t),
                     p.head_dim * sizeof(T));
  }
}

// ---- decode -------------------------------------------------------------------------------------------------

template <typename T, int kRows>
inline void dot_rows(const float* query, const T* keys, int64_t stride, int64_t head_dim, float* scores) {
  VecF acc[kRows] = {};
  int64_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) {
    const VecF q = load(query + d);
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) acc[r] += q * load(keys + r * stride + d);
  }
  if (d < head_dim) {
    const VecF q = load(query + d);
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) acc[r] += q * load_first(keys + r * stride + d, head_dim - d);
  }
  BARK_UNROLL
  for (int r = 0; r < kRows; ++r) scores[r] = sum_lanes(acc[r]);
}

// out[0, kVecs * kWidth) = sum_t weights[t] * values[t]
template <typename T, int kVecs>
inline void weighted_rows(const float* weights, const T* values, int64_t stride, int64_t count, float* out) {
  VecF acc[kVecs] = {};
  for (int64_t t = 0; t < count; ++t) {
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

template <typename T>
void decode_query(const AttentionParams& p, Pair pair, int64_t t, float* scratch) {
  const int64_t padded_dim = round_up(p.head_dim, kWidth), count = p.length + t + 1;
  float* query = scratch;
  float* result = scratch + padded_dim;
  float* scores = scratch + 2 * padded_dim;
  const T* keys = cache_of<T>(p.key_cache, p.key_cache_strides, pair);
  const T* values = cache_of<T>(p.value_cache, p.value_cache_strides, pair);
  const int64_t key_stride = p.key_cache_strides[2], value_stride = p.value_cache_strides[2];

  convert(query, row_of<T>(p.query, p.query_strides, pair, t), p.head_dim);
  for (int64_t d = 0; d < p.head_dim; ++d) query[d] *= p.scale;
  for (int64_t d = p.head_dim; d < padded_dim; ++d) query[d] = 0;

  int64_t i = 0;
  for (; i + 4 <= count; i += 4) dot_rows<T, 4>(query, keys + i * key_stride, key_stride, p.head_dim, scores + i);
  for (; i < count; ++i) dot_rows<T, 1>(query, keys + i * key_stride, key_stride, p.head_dim, scores + i);
  const float sum = softmax_numerators(scores, count);

  int64_t d = 0;
  for (; d + 8 * kWidth <= p.head_dim; d += 8 * kWidth) {
    weighted_rows<T, 8>(scores, values + d, value_stride, count, result + d);
  }
  for (; d + 4 * kWidth <= p.head_dim; d += 4 * kWidth) {
    weighted_rows<T, 4>(scores, values + d, value_stride, count, result + d);
  }
  for (; d + kWidth <= p.head_dim; d += kWidth) {
    weighted_rows<T, 1>(scores, values + d, value_stride, count, result + d);
  }
  if (d < p.head_dim) weighted_tail(scores, values + d, value_stride, count, p.head_dim - d, result + d);

  T* out = out_row<T>(p, pair, t);
  for (d = 0; d < p.head_dim; d += kWidth) {
    store_first(out + d, load(result + d) / sum, min64(kWidth, p.head_dim - d));
  }
}

// ---- block --------------------------------------------------------------------------------------------------

struct BlockScratch {
  float* queries;  // [kMicroTiles, D, kLanes], scaled
  float* scores;   // [kMicroTiles, kTileKeys, kLanes]
  float* out;      // [kMicroTiles * kLanes, padded D]
  float* top;      // [kBlockQueries] running maximum
  float* sum;      // [kBlockQueries] running sum
  float* keys;     // [kTileKeys, D], only for 16-bit caches
  float* values;   // [kTileKeys, padded D], only for 16-bit caches or an awkward D
};

inline int64_t block_dim(const AttentionParams& p) { return round_up(p.head_dim, kLanes); }

inline BlockScratch carve(const AttentionParams& p, float* at) {
  BlockScratch s;
  s.queries = at;
  s.scores = s.queries + kBlockQueries * p.head_dim;
  s.out = s.scores + kBlockQueries * kTileKeys;
  s.top = s.out + kBlockQueries * block_dim(p);
  s.sum = s.top + kBlockQueries;
  s.keys = s.sum + kBlockQueries;
  s.values = s.keys + kTileKeys * p.head_dim;
  return s;
}

inline int64_t attention_scratch(const AttentionParams& p) {
  const int64_t decode = 2 * round_up(p.head_dim, kWidth) + round_up(p.length + p.tokens, kWidth);
  const int64_t block =
      kBlockQueries * (p.head_dim + kTileKeys + block_dim(p) + 2) + kTileKeys * (p.head_dim + block_dim(p));
  return decode > block ? decode : block;
}

// scores[k, 0:kLanes) = sum_d keys[k, d] * queries[d, 0:kLanes)
template <int kRows>
inline void score_rows(const float* keys, int64_t stride, const float* queries, int64_t head_dim, float* scores) {
  VecF acc[kRows][2] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    const VecF q0 = load(queries + d * kLanes), q1 = load(queries + d * kLanes + kWidth);
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecF k = splat(keys[r * stride + d]);
      acc[r][0] += k * q0;
      acc[r][1] += k * q1;
    }
  }
  BARK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    store(scores + r * kLanes, acc[r][0]);
    store(scores + r * kLanes + kWidth, acc[r][1]);
  }
}

// out[q, 0:kLanes) += sum_k weights[k, q] * values[k, 0:kLanes) for kQueryRows queries
inline void accumulate_values(const float* weights, const float* values, int64_t stride, int64_t keys, float* out,
                              int64_t out_stride) {
  VecF acc[kQueryRows][2];
  BARK_UNROLL
  for (int r = 0; r < kQueryRows; ++r) {
    acc[r][0] = load(out + r * out_stride);
    acc[r][1] = load(out + r * out_stride + kWidth);
  }
  for (int64_t k = 0; k < keys; ++k) {
    const VecF v0 = load(values + k * stride), v1 = load(values + k * stride + kWidth);
    BARK_UNROLL
    for (int r = 0; r < kQueryRows; ++r) {
      const VecF w = splat(weights[k * kLanes + r]);
      acc[r][0] += w * v0;
      acc[r][1] += w * v1;
    }
  }
  BARK_UNROLL
  for (int r = 0; r < kQueryRows; ++r) {
    store(out + r * out_stride, acc[r][0]);
    store(out + r * out_stride + kWidth, acc[r][1]);
  }
}

// Hides keys after each query: query lane q of this micro tile sees tile keys [0, first_visible + q].
inline void mask_future(float* scores, int64_t keys, int64_t first_visible) {
  for (int64_t k = first_visible + 1 > 0 ? first_visible + 1 : 0; k < keys; ++k) {
    const int64_t hidden = min64(kLanes, k - first_visible);
    for (int64_t q = 0; q < hidden; ++q) scores[k * kLanes + q] = -kInfinity;
  }
}

// One online-softmax step for kWidth queries; rescales their outputs. scores: [keys, kLanes].
inline void softmax_step(float* scores, int64_t keys, float* top, float* sum, float* out, int64_t out_stride) {
  const VecF old_top = load(top);
  VecF new_top = old_top;
  for (int64_t k = 0; k < keys; ++k) new_top = vmax(new_top, load(scores + k * kLanes));
  store(top, new_top);
  // Where nothing visible is above -inf yet, subtract 0 so that the weights are 0 and not NaN.
  const VecF shift = new_top == splat(-kInfinity) ? VecF{} : new_top;
  const VecF rescale = vexp(old_top - shift);
  VecF total = load(sum) * rescale;
  for (int64_t k = 0; k < keys; ++k) {
    const VecF e = vexp(load(scores + k * kLanes) - shift);
    store(scores + k * kLanes, e);
    total += e;
  }
  store(sum, total);
  for (int q = 0; q < kWidth; ++q) {
    if (rescale[q] == 1.0f) continue;
    for (int64_t d = 0; d < out_stride; d += kWidth) {
      store(out + q * out_stride + d, load(out + q * out_stride + d) * rescale[q]);
    }
  }
}

template <typename T>
inline const float* key_tile(const AttentionParams& p, const T* keys, int64_t count, float* packed, int64_t* stride) {
  if constexpr (sizeof(T) == 4) {
    *stride = p.key_cache_strides[2];
    return keys;
  } else {
    for (int64_t k = 0; k < count; ++k) {
      convert(packed + k * p.head_dim, keys + k * p.key_cache_strides[2], p.head_dim);
    }
    *stride = p.head_dim;
    return packed;
  }
}

template <typename T>
inline const float* value_tile(const AttentionParams& p, const T* values, int64_t count, float* packed,
                               int64_t* stride) {
  const int64_t padded = block_dim(p);
  if constexpr (sizeof(T) == 4) {
    if (padded == p.head_dim) {
      *stride = p.value_cache_strides[2];
      return values;
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    convert(packed + k * padded, values + k * p.value_cache_strides[2], p.head_dim);
    for (int64_t d = p.head_dim; d < padded; ++d) packed[k * padded + d] = 0;
  }
  *stride = padded;
  return packed;
}

template <typename T>
inline void start_block(const AttentionParams& p, Pair pair, int64_t first, int64_t queries, int64_t micro_tiles,
                        const BlockScratch& s) {
  for (int64_t q = 0; q < micro_tiles * kLanes; ++q) {
    float* lane = s.queries + q / kLanes * p.head_dim * kLanes + q % kLanes;
    float row[kWidth];
    for (int64_t d = 0; d < p.head_dim; d += kWidth) {
      const int64_t lanes = min64(kWidth, p.head_dim - d);
      const T* from = row_of<T>(p.query, p.query_strides, pair, first + (q < queries ? q : 0)) + d;
      store(row, q < queries ? load_first(from, lanes) * p.scale : VecF{});
      for (int64_t i = 0; i < lanes; ++i) lane[(d + i) * kLanes] = row[i];
    }
  }
  for (int64_t q = 0; q < micro_tiles * kLanes; ++q) s.top[q] = -kInfinity;
  __builtin_memset(s.sum, 0, kBlockQueries * sizeof(float));
  __builtin_memset(s.out, 0, micro_tiles * kLanes * block_dim(p) * sizeof(float));
}

// One micro tile of queries against one tile of keys. last_visible: of its lane 0, relative to the tile.
inline void attend_tile(const AttentionParams& p, const BlockScratch& s, int64_t micro, const float* keys,
                        int64_t key_stride, const float* values, int64_t value_stride, int64_t count,
                        int64_t last_visible) {
  const int64_t padded = block_dim(p);
  const float* queries = s.queries + micro * p.head_dim * kLanes;
  float* scores = s.scores + micro * kTileKeys * kLanes;
  float* out = s.out + micro * kLanes * padded;
  int64_t k = 0;
  for (; k + kKeyRows <= count; k += kKeyRows) {
    score_rows<kKeyRows>(keys + k * key_stride, key_stride, queries, p.head_dim, scores + k * kLanes);
  }
  for (; k < count; ++k) {
    score_rows<1>(keys + k * key_stride, key_stride, queries, p.head_dim, scores + k * kLanes);
  }
  if (last_visible < count - 1) mask_future(scores, count, last_visible);
  for (int64_t half = 0; half < kLanes; half += kWidth) {
    const int64_t q = micro * kLanes + half;
    softmax_step(scores + half, count, s.top + q, s.sum + q, out + half * padded, padded);
  }
  for (int64_t q = 0; q < kLanes; q += kQueryRows) {
    for (int64_t d = 0; d < padded; d += kLanes) {
      accumulate_values(scores + q, values + d, value_stride, count, out + q * padded + d, padded);
    }
  }
}

template <typename T>
void block_task(const AttentionParams& p, Pair pair, int64_t first, float* scratch) {
  const BlockScratch s = carve(p, scratch);
  const int64_t queries = min64(kBlockQueries, p.tokens - first), padded = block_dim(p);
  const int64_t micro_tiles = (queries + kLanes - 1) / kLanes;
  const int64_t visible = p.length + first + queries;
  const T* keys = cache_of<T>(p.key_cache, p.key_cache_strides, pair);
  const T* values = cache_of<T>(p.value_cache, p.value_cache_strides, pair);
  start_block<T>(p, pair, first, queries, micro_tiles, s);
  for (int64_t tile = 0; tile < visible; tile += kTileKeys) {
    const int64_t count = min64(kTileKeys, visible - tile);
    int64_t key_stride, value_stride;
    const float* k = key_tile(p, keys + tile * p.key_cache_strides[2], count, s.keys, &key_stride);
    const float* v = value_tile(p, values + tile * p.value_cache_strides[2], count, s.values, &value_stride);
    for (int64_t micro = 0; micro < micro_tiles; ++micro) {
      const int64_t last_visible = p.length + first + micro * kLanes - tile;
      const int64_t reach = min64(count, last_visible + kLanes);  // keys that some lane sees
      if (reach > 0) attend_tile(p, s, micro, k, key_stride, v, value_stride, reach, last_visible);
    }
  }
  for (int64_t q = 0; q < queries; ++q) {
    T* out = out_row<T>(p, pair, first + q);
    for (int64_t d = 0; d < p.head_dim; d += kWidth) {
      store_first(out + d, load(s.out + q * padded + d) / s.sum[q], min64(kWidth, p.head_dim - d));
    }
  }
}

// ---- entry points -------------------------------------------------------------------------------------------

template <typename T>
void decode_pairs(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    append_pair<T>(p, pair_at(p, i));
    for (int64_t t = 0; t < p.tokens; ++t) decode_query<T>(p, pair_at(p, i), t, scratch);
  }
}

template <typename T>
void append_pairs(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) append_pair<T>(p, pair_at(p, i));
}

template <typename T>
void block_tasks(const AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t blocks = (p.tokens + kBlockQueries - 1) / kBlockQueries;
  for (int64_t i = begin; i < end; ++i) {
    block_task<T>(p, pair_at(p, i / blocks), i % blocks * kBlockQueries, scratch);
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
