// Tiles of queries x keys with an online softmax. Scores are kept transposed (keys x queries), so keys are
// broadcast straight from the cache and the softmax runs over rows without any horizontal step.
#pragma once

#include "attention_common.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kLanes = 2 * kWidth;  // queries per micro tile
constexpr int64_t kBlockQueries = 64;   // queries per task
constexpr int64_t kTileKeys = 96;       // a multiple of both kKeyRows below
constexpr int64_t kMicroTiles = kBlockQueries / kLanes;
constexpr int kKeyRows = kWidth == 16 ? 12 : 6;  // accumulators: 2 * rows, within the register file
constexpr int kQueryRows = kWidth == 16 ? 8 : 4;

struct BlockScratch {
  float* queries;  // [kMicroTiles, D, kLanes], scaled
  float* scores;   // [kMicroTiles, kTileKeys, kLanes]
  float* out;      // [kMicroTiles * kLanes, padded D]
  float* top;      // [kBlockQueries] running maximum
  float* sum;      // [kBlockQueries] running sum
  float* keys;     // [kTileKeys, D], only for 16-bit caches and rows that are apart
  float* values;   // [kTileKeys, padded D], the same, and for an awkward D
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

// scores[k, 0:kVecs * kWidth) = sum_d keys[k, d] * queries[d, ...]
template <int kRows, int kVecs>
inline void score_rows(const float* keys, int64_t stride, const float* queries, int64_t head_dim,
                       float* scores) {
  VecF acc[kRows][kVecs] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecF k = splat(keys[r * stride + d]);
      BARK_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[r][j] += k * load(queries + d * kLanes + j * kWidth);
    }
  }
  BARK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BARK_UNROLL
    for (int j = 0; j < kVecs; ++j) store(scores + r * kLanes + j * kWidth, acc[r][j]);
  }
}

template <int kVecs>
inline void score_tile(const float* keys, int64_t stride, int64_t count, const float* queries,
                       int64_t head_dim, float* scores) {
  int64_t k = 0;
  for (; k + kKeyRows <= count; k += kKeyRows) {
    score_rows<kKeyRows, kVecs>(keys + k * stride, stride, queries, head_dim, scores + k * kLanes);
  }
  for (; k < count; ++k) {
    score_rows<1, kVecs>(keys + k * stride, stride, queries, head_dim, scores + k * kLanes);
  }
}

// out[q, 0:kLanes) += sum_k weights[k, q] * values[k, 0:kLanes) for kQueryRows queries
inline void accumulate_values(const float* weights, const float* values, int64_t stride, int64_t keys,
                              float* out, int64_t out_stride) {
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
inline void softmax_step(float* scores, int64_t keys, float* top, float* sum, float* out,
                         int64_t out_stride) {
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
inline const float* key_tile(const AttentionParams& p, const T* keys, int64_t count, float* packed,
                             int64_t* stride) {
  *stride = p.head_dim;
  if constexpr (sizeof(T) == 4) {
    // Rows that are far apart would share few places of the first cache.
    if (p.key_cache_strides[2] == p.head_dim) return keys;
  }
  for (int64_t k = 0; k < count; ++k) {
    convert(packed + k * p.head_dim, keys + k * p.key_cache_strides[2], p.head_dim);
  }
  return packed;
}

template <typename T>
inline const float* value_tile(const AttentionParams& p, const T* values, int64_t count, float* packed,
                               int64_t* stride) {
  const int64_t padded = block_dim(p);
  *stride = padded;
  if constexpr (sizeof(T) == 4) {
    if (p.value_cache_strides[2] == padded && padded == p.head_dim) return values;
  }
  for (int64_t k = 0; k < count; ++k) {
    convert(packed + k * padded, values + k * p.value_cache_strides[2], p.head_dim);
    for (int64_t d = p.head_dim; d < padded; ++d) packed[k * padded + d] = 0;
  }
  return packed;
}

template <typename T>
inline void start_block(const AttentionParams& p, Pair pair, int64_t first, int64_t queries,
                        int64_t micro_tiles, const BlockScratch& s) {
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

// One tile of keys and values, as floats.
struct Tile {
  const float *keys, *values;
  int64_t key_stride, value_stride, count;
};

// One micro tile of queries, of which `active` lanes are real, against a tile. Its lane 0 sees tile keys up
// to last_visible.
inline void attend_tile(const AttentionParams& p, const BlockScratch& s, int64_t micro, int64_t active,
                        const Tile& tile, int64_t last_visible) {
  const int64_t padded = block_dim(p);
  const float* queries = s.queries + micro * p.head_dim * kLanes;
  float* scores = s.scores + micro * kTileKeys * kLanes;
  float* out = s.out + micro * kLanes * padded;
  if (active > kWidth) {
    score_tile<2>(tile.keys, tile.key_stride, tile.count, queries, p.head_dim, scores);
  } else {
    score_tile<1>(tile.keys, tile.key_stride, tile.count, queries, p.head_dim, scores);
  }
  if (last_visible < tile.count - 1) mask_future(scores, tile.count, last_visible);
  for (int64_t half = 0; half < active; half += kWidth) {
    const int64_t q = micro * kLanes + half;
    softmax_step(scores + half, tile.count, s.top + q, s.sum + q, out + half * padded, padded);
  }
  for (int64_t q = 0; q < active; q += kQueryRows) {
    for (int64_t d = 0; d < padded; d += kLanes) {
      accumulate_values(scores + q, tile.values + d, tile.value_stride, tile.count, out + q * padded + d,
                        padded);
    }
  }
}

template <typename T>
void block_task(const AttentionParams& p, Pair pair, int64_t first, float* scratch) {
  const BlockScratch s = carve(p, scratch);
  const int64_t queries = min64(kBlockQueries, p.tokens - first), padded = block_dim(p);
  const int64_t micro_tiles = (queries + kLanes - 1) / kLanes;
  const int64_t length = p.lengths[pair.b], visible = min64(p.keys, length + first + queries);
  const T* keys = cache_of<T>(p.key_cache, p.key_cache_strides, pair);
  const T* values = cache_of<T>(p.value_cache, p.value_cache_strides, pair);
  start_block<T>(p, pair, first, queries, micro_tiles, s);
  for (int64_t tile = 0; tile < visible; tile += kTileKeys) {
    Tile t{};
    t.count = min64(kTileKeys, visible - tile);
    t.keys = key_tile(p, keys + tile * p.key_cache_strides[2], t.count, s.keys, &t.key_stride);
    t.values = value_tile(p, values + tile * p.value_cache_strides[2], t.count, s.values, &t.value_stride);
    const int64_t in_tile = t.count;
    for (int64_t micro = 0; micro < micro_tiles; ++micro) {
      const int64_t active = min64(kLanes, queries - micro * kLanes);
      const int64_t last_visible = length + first + micro * kLanes - tile;
      t.count = min64(in_tile, last_visible + active);  // keys that some lane sees
      if (t.count > 0) attend_tile(p, s, micro, active, t, last_visible);
    }
  }
  for (int64_t q = 0; q < queries; ++q) {
    T* out = out_row<T>(p, pair, first + q);
    for (int64_t d = 0; d < p.head_dim; d += kWidth) {
      store_first(out + d, load(s.out + q * padded + d) / s.sum[q], min64(kWidth, p.head_dim - d));
    }
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
