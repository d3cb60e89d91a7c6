// A whole causal transformer over a few new tokens: five parts a layer and the head after them. What they do
// and in which order is the same for kernels of their own (decode_step), for the one that does them all
// (persistent_step.cuh) and for the emulator.
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
  uint32_t* arrived;  // of persistent_step.cuh
  int64_t floats;     // of all of them
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
  s.arrived = reinterpret_cast<uint32_t*>(take(1));
  return s;
}

BARK_BOTH GemvParams product(const MatrixView& m, int64_t outputs, const float* x, int64_t rows, float* y,
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

BARK_BOTH GemvParams normed_product(const NormView& norm, const MatrixView& m, int64_t outputs,
                                    const float* x, int64_t rows, float* y, Finish finish) {
  GemvParams g = product(m, outputs, x, rows, y, finish);
  g.norm_weight = norm.weight;
  g.norm_bias = norm.bias;
  g.eps = norm.eps;
  return g;
}

BARK_BOTH AttentionSplitParams decode_attention(const DecodeStepParams& step, const DecodeScratch& s,
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
BARK_BOTH GemvParams embedded(GemvParams g, const DecodeStepParams& step, float* hidden) {
  const DecodeParams& p = step.decode;
  g.input = Input::kEmbedding;
  g.embedding = {
      p.ids,         p.lengths,   int(p.tokens),  step.capacity,     step.vocabulary, step.positions_count,
      p.token_table, p.positions, p.token_stride, p.position_stride, p.table_dtype,   hidden};
  // Within a step nothing writes weights; before it, somebody may have.
  g.waits_first = true;
  return g;
}

BARK_BOTH GemvParams of_shares(GemvParams g, const DecodeStepParams& step, const DecodeScratch& s) {
  g.input = Input::kShares;
  g.shares = {s.shares, s.stats, int(step.splits), int(step.decode.width / step.decode.heads)};
  return g;
}

BARK_BOTH GemvParams head_product(const DecodeStepParams& step, const DecodeScratch& s,
                                  const MatrixView& head, int64_t outputs) {
  const DecodeParams& p = step.decode;
  const int64_t rows = p.batch * p.tokens;
  return normed_product(p.norm_final, head, outputs, s.hidden, rows, p.logits, Finish::kStore);
}

// The products of a layer, around its attention, and the one after all layers.
enum class Product : int32_t { kQkv, kAttentionOut, kMlpIn, kMlpOut, kHead };
constexpr int kProducts = 5;

// Of a layer; not the head.
BARK_BOTH const MatrixView& matrix_of(const DecodeLayer& layer, Product which) {
  return which == Product::kQkv            ? layer.qkv
         : which == Product::kAttentionOut ? layer.attention_out
         : which == Product::kMlpIn        ? layer.mlp_in
                                           : layer.mlp_out;
}

BARK_BOTH int64_t outputs_of(const DecodeParams& p, Product which) {
  return which == Product::kQkv ? 3 * p.width : which == Product::kMlpIn ? p.inner : p.width;
}

BARK_BOTH GemvParams product_of(const DecodeStepParams& step, const DecodeScratch& s, int64_t layer_index,
                                Product which) {
  const DecodeParams& p = step.decode;
  const int64_t rows = p.batch * p.tokens;
  if (which == Product::kHead) return head_product(step, s, p.head, p.head_rows);
  const DecodeLayer& layer = p.layers[layer_index];
  const MatrixView& m = matrix_of(layer, which);
  const int64_t outputs = outputs_of(p, which);
  switch (which) {
    case Product::kQkv: {
      const GemvParams qkv = normed_product(layer.norm_1, m, outputs, s.hidden, rows, s.qkv, Finish::kStore);
      return layer_index == 0 ? embedded(qkv, step, s.hidden) : qkv;
    }
    case Product::kAttentionOut:
      return of_shares(product(m, outputs, nullptr, rows, s.hidden, Finish::kAdd), step, s);
    case Product::kMlpIn:
      return normed_product(layer.norm_2, m, outputs, s.hidden, rows, s.inner, Finish::kGelu);
    default:
      return product(m, outputs, s.inner, rows, s.hidden, Finish::kAdd);
  }
}

// Executor: gemv(GemvParams), attention(AttentionSplitParams, DType cache).
template <class Executor>
void decode_step(Executor& executor, const DecodeStepParams& step) {
  const DecodeScratch s = decode_scratch(step);
  for (int64_t i = 0; i < step.decode.layers_count; ++i) {
    executor.gemv(product_of(step, s, i, Product::kQkv));
    executor.attention(decode_attention(step, s, i), step.decode.cache_dtype);
    for (const Product which : {Product::kAttentionOut, Product::kMlpIn, Product::kMlpOut}) {
      executor.gemv(product_of(step, s, i, which));
    }
  }
  executor.gemv(product_of(step, s, 0, Product::kHead));
}

}  // namespace bark_accel::cuda
