// The rows x that a product reads: as they lie in memory, the embedding of a token, or what the shares of
// attention.cuh add up to. Every block of a product makes them anew, which costs less than a kernel of its
// own.
#pragma once

#include "numbers.cuh"

namespace bark_accel::cuda {

enum class Input : int32_t { kRows, kEmbedding, kShares };

struct EmbeddingInput {
  const int64_t *ids, *lengths;  // [rows], [rows / tokens]
  int tokens;
  int64_t capacity, vocabulary, positions_count;
  const void *token_table, *positions;
  int64_t token_stride, position_stride;
  DType dtype;
  float* hidden;  // [rows, depth]: the first block keeps them; NaN where id, position or cache does not fit
};

struct SharesInput {
  const float *shares, *stats;  // [rows, heads, splits, head_dim] and [..., 2]
  int splits, head_dim;
};

// Empty shares count nothing. Where all are empty, 0 / 0 makes the result NaN.
BARK_DEVICE float weight_of_share(float share_top, float top) {
  return share_top == -infinity() ? 0.0f : expf(share_top - top);
}

// Element d of the shares of one row and head: `pair` counts both.
BARK_DEVICE float combined(const SharesInput& in, int64_t pair, int d) {
  const float* stats = in.stats + pair * in.splits * 2;
  const float* share = in.shares + pair * in.splits * in.head_dim + d;
  float top = -infinity(), total = 0, sum = 0;
  for (int i = 0; i < in.splits; ++i) top = fmaxf(top, stats[2 * i]);
  for (int i = 0; i < in.splits; ++i) {
    const float weight = weight_of_share(stats[2 * i], top);
    // A share that counts nothing may hold anything.
    if (weight == 0.0f) continue;
    total += weight * stats[2 * i + 1];
    sum += weight * share[i * in.head_dim];
  }
  return sum / total;
}

BARK_DEVICE float table_entry(const void* table, int64_t at, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(table)[at];
  if (dtype == DType::kFloat16) return to_float(static_cast<const Half*>(table)[at]);
  return to_float(static_cast<const BFloat16*>(table)[at]);
}

BARK_DEVICE float embedded(const EmbeddingInput& in, int row, int k) {
  const int64_t id = in.ids[row], length = in.lengths[row / in.tokens];
  const bool fits = id >= 0 && id < in.vocabulary && length >= 0 &&
                    length <= smaller(in.positions_count, in.capacity) - in.tokens;
  if (!fits) return not_a_number();
  return table_entry(in.token_table, id * in.token_stride + k, in.dtype) +
         table_entry(in.positions, (length + row % in.tokens) * in.position_stride + k, in.dtype);
}

}  // namespace bark_accel::cuda
