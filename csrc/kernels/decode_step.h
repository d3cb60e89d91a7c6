// A whole causal transformer over a few new tokens, for a team of threads. Every thread runs decode_step;
// what one thread writes and another reads lies on two sides of team.wait. Small per-row work (LayerNorm,
// quantisation) is done by every thread for itself, which costs less than a barrier. Sums never depend on the
// number of threads.
#pragma once

#include "attention_decode.h"
#include "product.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

struct Range {
  int64_t begin, end;
};

inline Range share(const Team& team, int64_t n) {
  return {n * team.rank / team.size, n * (team.rank + 1) / team.size};
}

// Shared buffers, then those of one thread; all [rows, ...] float32 unless said otherwise.
struct DecodeBuffers {
  float *hidden, *qkv, *attended, *inner, *product;  // width, 3 width, width, inner, width
  float *normed, *row_scales, *attention;            // max(width, inner), 1, queries_floats()
  int16_t* quantized;                                // max(width, inner)
  int32_t* packed;                                   // batch_inputs() of max(width, inner)
  float* sums;                                       // batch_sums()
};

inline int64_t slot_of(const DecodeParams& p, int64_t row) { return p.slots[row / p.tokens]; }

inline int64_t decode_depth(const DecodeParams& p) { return p.inner > p.width ? p.inner : p.width; }

inline int64_t shared_floats(const DecodeParams& p) {
  return round_up(p.batch * p.tokens * (6 * p.width + p.inner), kWidth);
}

inline int64_t own_floats(const DecodeParams& p) {
  const int64_t rows = p.batch * p.tokens, depth = round_up(decode_depth(p), 2 * kWidth);
  const int64_t attention = queries_floats(p.width / p.heads, p.longest + p.tokens);
  const int64_t batch = batch_inputs(rows, decode_depth(p)) + batch_sums(rows);
  return round_up(rows * depth + rows * depth / 2 + rows + attention + batch, 16);
}

inline int64_t decode_scratch(const DecodeParams& p, int64_t threads) {
  return shared_floats(p) + threads * own_floats(p);
}

inline DecodeBuffers decode_buffers(const DecodeParams& p, int64_t rank) {
  const int64_t rows = p.batch * p.tokens, depth = round_up(decode_depth(p), 2 * kWidth);
  DecodeBuffers b;
  b.hidden = p.scratch;
  b.qkv = b.hidden + rows * p.width;
  b.attended = b.qkv + rows * 3 * p.width;
  b.product = b.attended + rows * p.width;
  b.inner = b.product + rows * p.width;
  b.normed = p.scratch + shared_floats(p) + rank * own_floats(p);
  b.quantized = reinterpret_cast<int16_t*>(b.normed + rows * depth);
  b.row_scales = b.normed + rows * depth + rows * depth / 2;
  b.sums = b.row_scales + rows;
  b.packed = reinterpret_cast<int32_t*>(b.sums + batch_sums(rows));
  b.attention = b.sums + batch_sums(rows) + batch_inputs(rows, decode_depth(p));
  return b;
}

template <typename T>
void embed_rows(const DecodeParams& p, Range rows, float* hidden) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t slot = slot_of(p, r), t = r % p.tokens;
    const T* token = static_cast<const T*>(p.token_table) + p.ids[slot * p.tokens + t] * p.token_stride;
    const T* position = static_cast<const T*>(p.positions) + (p.lengths[slot] + t) * p.position_stride;
    float* out = hidden + r * p.width;
    int64_t c = 0;
    for (; c + kWidth <= p.width; c += kWidth) store(out + c, load(token + c) + load(position + c));
    if (c < p.width) {
      store_first(out + c, load_first(token + c, p.width - c) + load_first(position + c, p.width - c),
                  p.width - c);
    }
  }
}

inline void embed(const DecodeParams& p, Range rows, float* hidden) {
  switch (p.table_dtype) {
    case DType::kFloat16:
      return embed_rows<Half>(p, rows, hidden);
    case DType::kBFloat16:
      return embed_rows<BFloat16>(p, rows, hidden);
    default:
      return embed_rows<float>(p, rows, hidden);
  }
}

inline void layer_norm(const float* x, const NormView& norm, int64_t n, float* y) {
  VecF sum{};
  int64_t c = 0;
  for (; c + kWidth <= n; c += kWidth) sum += load(x + c);
  float total = sum_lanes(sum);
  for (int64_t i = c; i < n; ++i) total += x[i];
  const float mean = total / float(n);
  VecF squares{};
  for (c = 0; c + kWidth <= n; c += kWidth) {
    const VecF d = load(x + c) - mean;
    squares += d * d;
  }
  float variance = sum_lanes(squares);
  for (int64_t i = c; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / __builtin_sqrtf(variance / float(n) + norm.eps);
  for (c = 0; c + kWidth <= n; c += kWidth) {
    const VecF y_hat = (load(x + c) - mean) * inverse * load(norm.weight + c);
    store(y + c, norm.bias ? y_hat + load(norm.bias + c) : y_hat);
  }
  for (; c < n; ++c) y[c] = (x[c] - mean) * inverse * norm.weight[c] + (norm.bias ? norm.bias[c] : 0.0f);
}

// The rows of `x` as a product wants them: int16 beside int8 weights.
inline Activations activations(const MatrixView& m, const float* x, int64_t rows, const DecodeBuffers& b) {
  Activations a{x, b.quantized, b.row_scales, m.depth, rows, b.packed, b.sums};
  if (m.dtype == DType::kInt8) {
    for (int64_t r = 0; r < rows; ++r) {
      quantize_row(x + r * m.depth, m.depth, b.quantized + r * m.depth, b.row_scales + r);
    }
    if (rows >= kLeastBatch) pack_batch(b.quantized, m.depth, rows, m.depth, b.packed);
  }
  return a;
}

inline Activations normed(const DecodeParams& p, const NormView& norm, const MatrixView& m,
                          const DecodeBuffers& b) {
  const int64_t rows = p.batch * p.tokens;
  for (int64_t r = 0; r < rows; ++r)
    layer_norm(b.hidden + r * p.width, norm, p.width, b.normed + r * p.width);
  return activations(m, b.normed, rows, b);
}

// y = [gelu](y + bias), columns `range` of [rows, stride]
inline void finish(float* y, int64_t rows, int64_t stride, const float* bias, Range range, bool gelu) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = y + r * stride;
    for (int64_t c = range.begin; c < range.end; c += kWidth) {
      const int64_t n = min64(kWidth, range.end - c);
      VecF v = n == kWidth ? load(row + c) : load_first(row + c, n);
      if (bias) v += n == kWidth ? load(bias + c) : load_first(bias + c, n);
      if (gelu) v = vgelu(v);
      n == kWidth ? store(row + c, v) : store_first(row + c, v, n);
    }
  }
}

// hidden += x W^T + bias, every thread its own columns
inline void add_product(const DecodeParams& p, const MatrixView& m, const float* x, const DecodeBuffers& b,
                        const Team& team) {
  const int64_t rows = p.batch * p.tokens;
  const Range columns = share(team, p.width);
  product(m, activations(m, x, rows, b), columns.begin, columns.end, {b.product, p.width});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      b.hidden[r * p.width + c] += b.product[r * p.width + c] + (m.bias ? m.bias[c] : 0.0f);
    }
  }
}

// A thread's share of the pairs (row, head): pairs of long rows are more work.
inline Range attention_share(const DecodeParams& p, const Team& team) {
  const auto work_of = [&](int64_t pair) { return p.lengths[p.slots[pair / p.heads]] + p.tokens; };
  int64_t total = 0, before = 0;
  for (int64_t i = 0; i < p.batch * p.heads; ++i) total += work_of(i);
  const Range work = share(team, total);
  Range pairs{0, 0};
  for (int64_t i = 0; i < p.batch * p.heads; ++i) {
    pairs.begin += before < work.begin;
    pairs.end += before < work.end;
    before += work_of(i);
  }
  return pairs;
}

// Keys or values of a pair (row, head).
template <typename T>
CachedRows<T> rows_of_pair(const DecodeParams& p, const void* cache, const int64_t* strides, int64_t pair) {
  const int64_t slot = p.slots[pair / p.heads], head = pair % p.heads;
  return {static_cast<const T*>(cache) + slot * strides[0] + head * strides[1], strides[2]};
}

template <typename T>
HeadCache<T> cache_of_pair(const DecodeParams& p, const CacheView& cache, int64_t pair, int64_t end) {
  const auto length = [&](int64_t i) { return p.lengths[p.slots[i / p.heads]]; };
  const int64_t next = pair + 1 < end ? pair + 1 : pair;
  return head_cache(rows_of_pair<T>(p, cache.keys, cache.key_strides, pair),
                    rows_of_pair<T>(p, cache.values, cache.value_strides, pair), length(pair),
                    rows_of_pair<T>(p, cache.keys, cache.key_strides, next), next == pair ? 0 : length(next),
                    p.width / p.heads);
}

template <typename T>
void decode_attention(const DecodeParams& p, int64_t layer, Range pairs, const DecodeBuffers& b) {
  const int64_t head_dim = p.width / p.heads;
  const float scale = 1.0f / __builtin_sqrtf(float(head_dim));
  for (int64_t i = pairs.begin; i < pairs.end; ++i) {
    const int64_t row = i / p.heads * p.tokens, h = i % p.heads, length = p.lengths[p.slots[i / p.heads]];
    const float* qkv = b.qkv + row * 3 * p.width + h * head_dim;
    const HeadCache<T> cache = cache_of_pair<T>(p, p.caches[layer], i, pairs.end);
    for (int64_t t = 0; t < p.tokens; ++t) {
      const float* key = qkv + t * 3 * p.width + p.width;
      write_row(const_cast<T*>(cache.keys.at(length + t)), key, head_dim);
      write_row(const_cast<T*>(cache.values.at(length + t)), key + p.width, head_dim);
    }
    const auto start = [&](int64_t t, float* query) {
      for (int64_t d = 0; d < head_dim; d += kWidth) {
        store(query + d, load_first(qkv + t * 3 * p.width + d, min64(kWidth, head_dim - d)) * scale);
      }
    };
    attend_head(b.attention, cache, p.tokens, length + 1, head_dim, b.attended + row * p.width + h * head_dim,
                p.width, start);
  }
}

inline void attention_step(const DecodeParams& p, int64_t layer, Range pairs, const DecodeBuffers& b) {
  switch (p.cache_dtype) {
    case DType::kFloat16:
      return decode_attention<Half>(p, layer, pairs, b);
    case DType::kBFloat16:
      return decode_attention<BFloat16>(p, layer, pairs, b);
    case DType::kInt8:
      return decode_attention<int8_t>(p, layer, pairs, b);
    default:
      return decode_attention<float>(p, layer, pairs, b);
  }
}

inline void decode_step(const DecodeParams& p, const Team& team) {
  const DecodeBuffers b = decode_buffers(p, team.rank);
  const int64_t rows = p.batch * p.tokens;
  const Range qkv = share(team, 3 * p.width), inner = share(team, p.inner), pairs = attention_share(p, team);
  embed(p, share(team, rows), b.hidden);
  team.wait();
  for (int64_t i = 0; i < p.layers_count; ++i) {
    const DecodeLayer& layer = p.layers[i];
    product(layer.qkv, normed(p, layer.norm_1, layer.qkv, b), qkv.begin, qkv.end, {b.qkv, 3 * p.width});
    finish(b.qkv, rows, 3 * p.width, layer.qkv.bias, qkv, false);
    team.wait();
    attention_step(p, i, pairs, b);
    team.wait();
    add_product(p, layer.attention_out, b.attended, b, team);
    team.wait();
    product(layer.mlp_in, normed(p, layer.norm_2, layer.mlp_in, b), inner.begin, inner.end,
            {b.inner, p.inner});
    finish(b.inner, rows, p.inner, layer.mlp_in.bias, inner, true);
    team.wait();
    add_product(p, layer.mlp_out, b.inner, b, team);
    team.wait();
  }
  const Range head = share(team, p.head_rows);
  product(p.head, normed(p, p.norm_final, p.head, b), head.begin, head.end, {p.logits, p.head_rows});
}

}  // namespace bark_accel::BARK_ACCEL_ISA
