// Sum of the embeddings of a frame's codes and of its position, one block a frame.
#pragma once

#include "numbers.cuh"

namespace bark_accel::cuda {

constexpr int64_t kMostTables = 32;

struct CodebookEmbeddingSumParams {
  const void* codes;  // [B, T, K]
  bool codes_are_int64;
  int64_t codes_strides[3];
  int64_t batch, frames, tables_count, vocabulary, width;
  const void* tables[kMostTables];  // [V, C] each
  int64_t table_strides[kMostTables];
  const void* positions;  // [P, C]
  int64_t position_stride;
  float* out;  // [B, T, C]; NaN where a code is outside the vocabulary
};

template <class Value>
struct CodebookEmbeddingSum {
  using Params = CodebookEmbeddingSumParams;
  static constexpr int kThreads = 128;

  static Grid grid(const Params& p) { return {p.batch * p.frames, kThreads, 0}; }

  BARK_DEVICE static int64_t code(const Params& p, int64_t row, int64_t k) {
    const int64_t* s = p.codes_strides;
    const int64_t at = row / p.frames * s[0] + row % p.frames * s[1] + k * s[2];
    return p.codes_are_int64 ? static_cast<const int64_t*>(p.codes)[at]
                             : static_cast<const int32_t*>(p.codes)[at];
  }

  BARK_DEVICE static bool fits(const Params& p, int64_t row) {
    for (int64_t k = 0; k < p.tables_count; ++k) {
      const int64_t c = code(p, row, k);
      if (c < 0 || c >= p.vocabulary) return false;
    }
    return true;
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    ctx.release_next();
    ctx.wait_for_previous();
    const int64_t row = ctx.block();
    const bool all_fit = fits(p, row);
    for (int64_t c = ctx.thread(); c < p.width; c += kThreads) {
      float sum = 0;
      for (int64_t k = 0; k < p.tables_count && all_fit; ++k) {
        sum += to_float(static_cast<const Value*>(p.tables[k])[code(p, row, k) * p.table_strides[k] + c]);
      }
      const Value* position = static_cast<const Value*>(p.positions) + row % p.frames * p.position_stride;
      p.out[row * p.width + c] = all_fit ? sum + to_float(position[c]) : not_a_number();
    }
  }
};

template <class Executor>
void launch_codebook_embedding_sum(Executor& executor, const CodebookEmbeddingSumParams& p, DType dtype) {
  with_float_type(dtype,
                  [&](auto zero) { executor.template launch<CodebookEmbeddingSum<decltype(zero)>>(p); });
}

}  // namespace bark_accel::cuda
