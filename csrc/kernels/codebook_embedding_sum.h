// out[b, t] = sum over the first n codebooks of tables[i][codes[b, t, i]], plus positions[t]; fp32
// accumulation. Each output row is produced chunk by chunk in registers, so every table row is read once and
// nothing of size [B, T, C, K] exists (stock concatenates all K lookups and sums a slice of them).
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kMaxTables = 32;

template <typename T>
void sum_rows(const T* const* rows, int64_t count, int64_t width, float* out) {
  constexpr int kChunk = 4 * kWidth;
  int64_t c = 0;
  for (; c + kChunk <= width; c += kChunk) {
    VecF acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(rows[0] + c + j * kWidth);
    for (int64_t i = 1; i < count; ++i) {
      for (int j = 0; j < 4; ++j) acc[j] += load(rows[i] + c + j * kWidth);
    }
    for (int j = 0; j < 4; ++j) store(out + c + j * kWidth, acc[j]);
  }
  for (; c < width; c += kWidth) {
    const int64_t lanes = min64(kWidth, width - c);
    VecF acc = load_first(rows[0] + c, lanes);
    for (int64_t i = 1; i < count; ++i) acc += load_first(rows[i] + c, lanes);
    store_first(out + c, acc, lanes);
  }
}

inline int64_t code_at(const EmbeddingSumParams& p, int64_t b, int64_t t, int64_t i) {
  const int64_t offset = b * p.codes_strides[0] + t * p.codes_strides[1] + i * p.codes_strides[2];
  return p.codes_are_int64 ? static_cast<const int64_t*>(p.codes)[offset]
                           : static_cast<const int32_t*>(p.codes)[offset];
}

template <typename T>
int64_t embedding_sum_typed(const EmbeddingSumParams& p, int64_t row_begin, int64_t row_end) {
  const T* rows[kMaxTables + 1];
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t b = row / p.frames, t = row % p.frames;
    for (int64_t i = 0; i < p.tables_count; ++i) {
      const int64_t code = code_at(p, b, t, i);
      if (code < 0 || code >= p.vocabulary) return row * p.tables_count + i;
      rows[i] = static_cast<const T*>(p.tables[i]) + code * p.table_strides[i];
    }
    rows[p.tables_count] = static_cast<const T*>(p.positions) + t * p.position_stride;
    sum_rows(rows, p.tables_count + 1, p.width, p.out + row * p.width);
  }
  return -1;
}

inline int64_t embedding_sum(const EmbeddingSumParams& p, int64_t row_begin, int64_t row_end) {
  switch (p.dtype) {
    case DType::kFloat16:
      return embedding_sum_typed<Half>(p, row_begin, row_end);
    case DType::kBFloat16:
      return embedding_sum_typed<BFloat16>(p, row_begin, row_end);
    default:
      return embedding_sum_typed<float>(p, row_begin, row_end);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
