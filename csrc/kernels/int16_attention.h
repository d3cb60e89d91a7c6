// softmax(query * key^T) * value in integers (int16_panels.h), online over groups of kGroup keys. Softmax and
// the sums over groups are float. Keys and values are packed once per (batch, head), queries and weights by
// the task.
#pragma once

#include "attention_common.h"
#include "int16_panels.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

// Sizes of one (batch, head), counted in 32-bit numbers.
struct PackedKeys {
  int64_t pairs;         // of one key
  int64_t groups;        // of keys
  int64_t value_panels;  // of kPanelColumns head dimensions
  int64_t group_keys;    // kGroup keys as columns, [panels, pairs, kPanelColumns], and their scales
  int64_t group_values;  // [value_panels, kPairs, kPanelColumns], and their scales
};

inline PackedKeys packed_keys(const Int16AttentionParams& p) {
  PackedKeys s{};
  s.pairs = round_up(p.head_dim, 2 * kWidth) / 2;
  s.groups = (p.keys + kGroup - 1) / kGroup;
  s.value_panels = (p.head_dim + kPanelColumns - 1) / kPanelColumns;
  s.group_keys = kGroup * (s.pairs + 1);
  s.group_values = s.value_panels * kPanelColumns * (kPairs + 1);
  return s;
}

inline int64_t int16_attention_packed_bytes(const Int16AttentionParams& p) {
  const PackedKeys s = packed_keys(p);
  return p.batch * p.heads * s.groups * (s.group_keys + s.group_values) * int64_t(sizeof(int32_t));
}

inline int32_t* packed_group(const Int16AttentionParams& p, const PackedKeys& s, int64_t index) {
  return static_cast<int32_t*>(p.packed) + index * (s.group_keys + s.group_values);
}

template <typename T>
void pack_keys(const PackedKeys& s, const T* keys, int64_t stride, int64_t count, int64_t head_dim,
               int32_t* to) {
  float* scales = reinterpret_cast<float*>(to + kGroup * s.pairs);
  float values[kWidth * kGroup] = {};
  for (int64_t first = 0; first < kGroup; first += kWidth) {
    for (int64_t k = 0; k < kWidth; ++k) {
      if (first + k < count) {
        convert(values + k * kGroup, keys + (first + k) * stride, head_dim);
      } else {
        __builtin_memset(values + k * kGroup, 0, head_dim * sizeof(float));
      }
    }
    int32_t* panel = to + first / kPanelColumns * kPanelColumns * s.pairs + first % kPanelColumns;
    quantize_lanes(values, 2 * s.pairs, panel, kPanelColumns, kWidth, scales + first);
  }
}

template <typename T>
void pack_values(const PackedKeys& s, const T* rows, int64_t stride, int64_t count, int64_t head_dim,
                 int32_t* to) {
  float* scales = reinterpret_cast<float*>(to + s.value_panels * kPanelColumns * kPairs);
  float values[kWidth * kGroup];
  for (int64_t d = 0; d < s.value_panels * kPanelColumns; d += kWidth) {
    const int64_t lanes = min64(kWidth, head_dim - d);
    for (int64_t k = 0; k < kGroup; k += kWidth) {
      VecPairs v[kWidth] = {};
      for (int64_t i = 0; i < kWidth && k + i < count && lanes > 0; ++i) {
        const T* row = rows + (k + i) * stride + d;
        v[i] = (VecPairs)(lanes == kWidth ? load(row) : load_first(row, lanes));
      }
      transpose(v);
      for (int64_t i = 0; i < kWidth; ++i) store(values + i * kGroup + k, (VecF)v[i]);
    }
    int32_t* panel = to + d / kPanelColumns * kPanelColumns * kPairs + d % kPanelColumns;
    quantize_lanes(values, kGroup, panel, kPanelColumns, kWidth, scales + d);
  }
}

// Tasks are (batch, head, group of keys).
template <typename T>
void pack_groups(const Int16AttentionParams& p, int64_t begin, int64_t end) {
  const PackedKeys s = packed_keys(p);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t pair = i / s.groups, first = i % s.groups * kGroup, b = pair / p.heads, h = pair % p.heads;
    const int64_t count = min64(kGroup, p.keys - first);
    const T* keys = static_cast<const T*>(p.key) + b * p.key_strides[0] + h * p.key_strides[1];
    const T* values = static_cast<const T*>(p.value) + b * p.value_strides[0] + h * p.value_strides[1];
    int32_t* to = packed_group(p, s, i);
    pack_keys(s, keys + first * p.key_strides[2], p.key_strides[2], count, p.head_dim, to);
    pack_values(s, values + first * p.value_strides[2], p.value_strides[2], count, p.head_dim,
                to + s.group_keys);
  }
}

inline void int16_attention_pack(const Int16AttentionParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat16:
      return pack_groups<Half>(p, begin, end);
    case DType::kBFloat16:
      return pack_groups<BFloat16>(p, begin, end);
    default:
      return pack_groups<float>(p, begin, end);
  }
}

struct QueryPanel {
  float* rows;       // [kWidth, kGroup]: queries, then scores, then softmax numerators
  int32_t* queries;  // [pairs, kPanelRows]
  int32_t* weights;  // [kPairs, kPanelRows]
  int32_t* tile;     // [kPanelRows, kPanelColumns]
  float* out;        // [kPanelRows, value_panels * kPanelColumns]
  float query_scales[kWidth], weight_factors[kWidth], weight_scales[kWidth], rescale[kWidth], top[kWidth],
      sum[kWidth];
};

inline int64_t int16_attention_scratch(const Int16AttentionParams& p) {
  const PackedKeys s = packed_keys(p);
  return kWidth * kGroup + (s.pairs + kPairs) * kPanelRows + kTile * (1 + s.value_panels);
}

inline QueryPanel start_queries(const Int16AttentionParams& p, const PackedKeys& s, const float* query,
                                int64_t rows, float* scratch) {
  QueryPanel q{};
  q.rows = scratch;
  q.queries = reinterpret_cast<int32_t*>(q.rows + kWidth * kGroup);
  q.weights = q.queries + s.pairs * kPanelRows;
  q.tile = q.weights + kPairs * kPanelRows;
  q.out = reinterpret_cast<float*>(q.tile + kTile);
  __builtin_memset(q.rows, 0, kWidth * kGroup * sizeof(float));
  __builtin_memset(q.out, 0, kTile * s.value_panels * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    __builtin_memcpy(q.rows + r * kGroup, query + r * p.query_strides[1], p.head_dim * sizeof(float));
  }
  quantize_lanes(q.rows, 2 * s.pairs, q.queries, kPanelRows, kPanelRows, q.query_scales);
  for (int r = 0; r < kPanelRows; ++r) {
    q.query_scales[r] *= p.scale;
    q.top[r] = -kInfinity;
  }
  return q;
}

// q.rows = scores of `length` keys of a group.
inline void score_group(const QueryPanel& q, const PackedKeys& s, const int32_t* keys, int64_t length) {
  const float* scales = reinterpret_cast<const float*>(keys + kGroup * s.pairs);
  for (int64_t k = 0; k < length; k += kPanelColumns) {
    multiply_panels(q.queries, keys + k * s.pairs, s.pairs, q.tile);
    const VecF scale0 = load(scales + k), scale1 = load(scales + k + kWidth);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      VecI integers[2];
      __builtin_memcpy(&integers, q.tile + r * kPanelColumns, sizeof integers);
      float* to = q.rows + r * kGroup + k;
      store(to, __builtin_convertvector(integers[0], VecF) * (scale0 * q.query_scales[r]));
      store(to + kWidth, __builtin_convertvector(integers[1], VecF) * (scale1 * q.query_scales[r]));
    }
  }
}

// Hides row r's scores from `seen` on and returns its largest.
inline float mask_row(float* scores, int64_t seen, int64_t length, float top) {
  for (int64_t k = seen > 0 ? seen : 0; k < length; ++k) scores[k] = -kInfinity;
  VecF max0 = splat(top), max1 = max0;
  for (int64_t k = 0; k < length; k += 2 * kWidth) {
    max0 = vmax(max0, load(scores + k));
    max1 = vmax(max1, load(scores + k + kWidth));
  }
  return max_lanes(vmax(max0, max1));
}

// q.rows to e^(score - running maximum). Row 0 sees the first `seen` keys, each row `more` further ones.
inline void exponentiate(QueryPanel& q, int64_t seen, int64_t more, int64_t length) {
  float tops[kWidth] = {}, sums[kWidth] = {}, squares[kWidth] = {};
  for (int64_t r = 0; r < kPanelRows; ++r) {
    float* scores = q.rows + r * kGroup;
    tops[r] = mask_row(scores, min64(seen + r * more, length), length, q.top[r]);
    VecF sum{}, square{};
    for (int64_t k = 0; k < length; k += kWidth) {
      const VecF e = vexp(load(scores + k) - tops[r]);
      store(scores + k, e);
      sum += e;
      square += e * e;
    }
    sums[r] = sum_lanes(sum);
    squares[r] = sum_lanes(square);
  }
  const VecF rescale = vexp(load(q.top) - load(tops));
  store(q.rescale, rescale);
  store(q.sum, load(q.sum) * rescale + load(sums));
  store(q.top, load(tops));
  // e is at most 1: below sqrt(2), the norm is not what limits the integers.
  for (int r = 0; r < kPanelRows; ++r) {
    q.weight_factors[r] = kMaxNorm / __builtin_sqrtf(squares[r] < 2.0f ? 2.0f : squares[r]);
    q.weight_scales[r] = 1.0f / q.weight_factors[r];
  }
}

inline void accumulate_group(const QueryPanel& q, const PackedKeys& s, const int32_t* values,
                             int64_t length) {
  const float* scales = reinterpret_cast<const float*>(values + s.value_panels * kPanelColumns * kPairs);
  pack_lanes(q.rows, q.weight_factors, length, q.weights, kPanelRows, kPanelRows);
  for (int64_t panel = 0; panel < s.value_panels; ++panel) {
    multiply_panels(q.weights, values + panel * kPanelColumns * kPairs, length / 2, q.tile);
    for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
      const VecF scale = load(scales + panel * kPanelColumns + c);
      for (int64_t r = 0; r < kPanelRows; ++r) {
        VecI integers;
        __builtin_memcpy(&integers, q.tile + r * kPanelColumns + c, sizeof integers);
        float* to = q.out + (r * s.value_panels + panel) * kPanelColumns + c;
        const VecF add = __builtin_convertvector(integers, VecF) * (scale * q.weight_scales[r]);
        store(to, load(to) * q.rescale[r] + add);
      }
    }
  }
}

// Tasks are (batch, head, kPanelRows queries).
inline void int16_attention(const Int16AttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  const PackedKeys s = packed_keys(p);
  const int64_t panels = (p.tokens + kPanelRows - 1) / kPanelRows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t pair = task / panels, b = pair / p.heads, h = pair % p.heads,
                  first = task % panels * kPanelRows;
    const int64_t rows = min64(kPanelRows, p.tokens - first);
    const float* query =
        p.query + b * p.query_strides[0] + first * p.query_strides[1] + h * p.query_strides[2];
    QueryPanel q = start_queries(p, s, query, rows, scratch);
    const int64_t before = p.causal ? p.keys - p.tokens + first : p.keys;  // keys that row -1 would see
    const int64_t visible = min64(p.keys, before + rows);
    for (int64_t k = 0; k < visible; k += kGroup) {
      const int64_t length = round_up(min64(kGroup, visible - k), kPanelColumns);
      const int32_t* group = packed_group(p, s, pair * s.groups + k / kGroup);
      score_group(q, s, group, length);
      exponentiate(q, (p.causal ? before + 1 : p.keys) - k, p.causal, length);
      accumulate_group(q, s, group + s.group_keys, length);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* out = p.out + ((b * p.tokens + first + r) * p.heads + h) * p.head_dim;
      const float* from = q.out + r * s.value_panels * kPanelColumns;
      for (int64_t d = 0; d < p.head_dim; d += kWidth) {
        store_first(out + d, load(from + d) / q.sum[r], min64(kWidth, p.head_dim - d));
      }
    }
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
