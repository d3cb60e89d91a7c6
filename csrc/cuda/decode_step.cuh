// A whole causal transformer over a few new tokens: five kernels a layer and the head after them. What the
// kernels do and in which order is the same for the device and for the emulator: only the Executor differs.
#pragma once

#include "attention.cuh"
#include "gemv.cuh"

namespace bark_accel::cuda {

struct DecodeStepParams {
  DecodeParams decode;  // ids and lengths on the device; slots are not used
  int64_t capacity;     // of the caches
  int64_t vocabulary, positions_count;
  int64_t splits;
};

struct DecodeScratch {
  float *hidden, *qkv, *inner, *shares, *stats;
  int64_t floats;  // of all of them
};

inline DecodeScratch decode_scratch(const DecodeStepParams& step) {
  const DecodeParams& p = step.decode;
  const int64_t rows = p.batch * p.tokens;
  DecodeScratch s{};
  const auto take = [&](int64_t floats) {
    float* from = p.scratch ? p.scratch + s.floats : nullptr;
    s.floats += ceil_div(floats, 4) * 4;
    return from;
  };
  s.hidden = take(rows * p.width);
  s.qkv = take(rows * 3 * p.width);
  s.inner = take(rows * p.inner);
  s.shares = take(rows * p.width * step.splits);
  s.stats = take(rows * p.heads * step.splits * 2);
  return s;
}

inline GemvParams product(const MatrixView& m, int64_t outputs, const float* x, int64_t rows, float* y,
                          Finish finish) {
  GemvParams g{};
  g.matrix = m;
  g.outputs = outputs;
  g.x = x;
  g.rows = rows;
  g.y = y;
  g.finish = finish;
  return g;
}

inline GemvParams normed_product(const NormView& norm, const MatrixView& m, int64_t outputs, const float* x,
                                 int64_t rows, float* y, Finish finish) {
  GemvParams g = product(m, outputs, x, rows, y, finish);
  g.norm_weight = norm.weight;
  g.norm_bias = norm.bias;
  g.eps = norm.eps;
  return g;
}

inline AttentionSplitParams decode_attention(const DecodeStepParams& step, const DecodeScratch& s,
                                             int64_t layer) {
  const DecodeParams& p = step.decode;
  AttentionSplitParams a{};
  a.query = s.qkv;
  a.key = s.qkv + p.width;
  a.value = s.qkv + 2 * p.width;
  const int64_t strides[3] = {p.tokens * 3 * p.width, 3 * p.width, p.width / p.heads};
  for (int i = 0; i < 3; ++i) a.query_strides[i] = a.key_strides[i] = a.value_strides[i] = strides[i];
  a.cache = p.caches[layer];
  a.lengths = p.lengths;
  a.batch = p.batch;
  a.tokens = p.tokens;
  a.heads = p.heads;
  a.head_dim = p.width / p.heads;
  a.capacity = step.capacity;
  a.splits = step.splits;
  a.aligned = cache_aligned(a.cache, size_of(p.cache_dtype));
  a.shares = s.shares;
  a.stats = s.stats;
  return a;
}

// The first product of all: of the tokens' embeddings, which it keeps as the residual stream.
inline GemvParams embedded(GemvParams g, const DecodeStepParams& step, float* hidden) {
  const DecodeParams& p = step.decode;
  g.input = Input::kEmbedding;
  g.embedding = {
      p.ids,         p.lengths,   int(p.tokens),  step.capacity,     step.vocabulary, step.positions_count,
      p.token_table, p.positions, p.token_stride, p.position_stride, p.table_dtype,   hidden};
  // Within a step nothing writes weights; before it, somebody may have.
  g.waits_first = true;
  return g;
}

inline GemvParams of_shares(GemvParams g, const DecodeStepParams& step, const DecodeScratch& s) {
  g.input = Input::kShares;
  g.shares = {s.shares, s.stats, int(step.splits), int(step.decode.width / step.decode.heads)};
  return g;
}

// Executor: gemv(GemvParams), attention(AttentionSplitParams, DType cache).
template <class Executor>
void decode_step(Executor& executor, const DecodeStepParams& step) {
  const DecodeParams& p = step.decode;
  const int64_t rows = p.batch * p.tokens;
  const DecodeScratch s = decode_scratch(step);
  for (int64_t i = 0; i < p.layers_count; ++i) {
    const DecodeLayer& layer = p.layers[i];
    const GemvParams qkv =
        normed_product(layer.norm_1, layer.qkv, 3 * p.width, s.hidden, rows, s.qkv, Finish::kStore);
    executor.gemv(i == 0 ? embedded(qkv, step, s.hidden) : qkv);
    executor.attention(decode_attention(step, s, i), p.cache_dtype);
    executor.gemv(
        of_shares(product(layer.attention_out, p.width, nullptr, rows, s.hidden, Finish::kAdd), step, s));
    executor.gemv(
        normed_product(layer.norm_2, layer.mlp_in, p.inner, s.hidden, rows, s.inner, Finish::kGelu));
    executor.gemv(product(layer.mlp_out, p.width, s.inner, rows, s.hidden, Finish::kAdd));
  }
  executor.gemv(normed_product(p.norm_final, p.head, p.head_rows, s.hidden, rows, p.logits, Finish::kStore));
}

}  // namespace bark_accel::cuda
