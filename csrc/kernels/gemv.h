// Row-major weights [N, K] times a few rows of activations [R, K]: every weight is read once, whatever R is.
// A few weight rows go side by side, each from its own part of the range: as many long sequential streams.
// How they are cut into tiles does not show in any sum.
#pragma once

#include "vec_short.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int kStreams = 4;
constexpr int64_t kBytesAhead = 2048;  // of each stream, where a weight serves one activation row

// Activations of one product. `quantized` serves int8 weights: int16 numbers, one scale per row; `packed` are
// the same for int8_batch.h, `sums` scratch of batches.
struct Activations {
  const float* x;            // [R, x_stride]
  const int16_t* quantized;  // [R, x_stride]
  const float* scales;       // [R]
  int64_t x_stride, rows;
  const int32_t* packed;
  float* sums;
};

// Destination [R, N] of a product.
struct Result {
  float* y;
  int64_t stride;

  void put(int64_t r, int64_t n, float value) const { y[r * stride + n] = value; }
};

template <int N, int R>
inline void sum_tile(const VecF (&acc)[N][R], float (&sums)[N][R]) {
  constexpr int kWhole = N * R / kWidth * kWidth;
  BARK_UNROLL
  for (int first = 0; first < kWhole; first += kWidth) {
    VecF v[kWidth];
    BARK_UNROLL
    for (int i = 0; i < kWidth; ++i) v[i] = acc[(first + i) / R][(first + i) % R];
    store(&sums[0][0] + first, sum_each(v));
  }
  BARK_UNROLL
  for (int i = kWhole; i < N * R; ++i) sums[i / R][i % R] = sum_lanes(acc[i / R][i % R]);
}

// What to fetch while `w` is read for R activation rows: with several, which take longer, the next weight
// row. A processor's own fetching ahead stops at the end of a page, which is a few rows.
template <int R, typename T>
inline const char* ahead_of(const T* w, int64_t stride) {
  return reinterpret_cast<const char*>(w) + (R == 1 ? kBytesAhead : stride * int64_t(sizeof(T)));
}

// Fetches what is ahead.
template <typename T, int N, int R>
inline void dot_tile(const T* const (&w)[N], int64_t stride, const float* x, int64_t x_stride, int64_t depth,
                     float (&sums)[N][R]) {
  VecF acc[N][R] = {};
  int64_t k = 0;
  for (; k + kWidth <= depth; k += kWidth) {
    VecF weight[N];
    BARK_UNROLL
    for (int n = 0; n < N; ++n) {
      weight[n] = load(w[n] + k);
      __builtin_prefetch(ahead_of<R>(w[n] + k, stride));
    }
    BARK_UNROLL
    for (int r = 0; r < R; ++r) {
      const VecF input = load(x + r * x_stride + k);
      BARK_UNROLL
      for (int n = 0; n < N; ++n) acc[n][r] += weight[n] * input;
    }
  }
  if (k < depth) {
    BARK_UNROLL
    for (int r = 0; r < R; ++r) {
      const VecF input = load_first(x + r * x_stride + k, depth - k);
      BARK_UNROLL
      for (int n = 0; n < N; ++n) acc[n][r] += load_first(w[n] + k, depth - k) * input;
    }
  }
  sum_tile(acc, sums);
}

// ---- int8 weights, int16 activations: the sum of a group of weights that share a scale is exact, at most
// 64 * 127 * 32767, then scaled and added to the groups before. So every tile and instruction set has the
// same.

template <int N, int R>
inline void dot_tile_int8(const int8_t* const (&w)[N], int64_t stride, const float* const (&scales)[N],
                          const int16_t* x, int64_t x_stride, int64_t depth, float* sums) {
  constexpr int kFours = (N * R + 3) / 4;
  Vec4 acc[kFours] = {};
  for (int64_t begin = 0, g = 0; begin < depth; begin += kInt8Group, ++g) {
    VecI inner[4 * kFours] = {};
    BARK_UNROLL
    for (int n = 0; n < N; ++n) {
      __builtin_prefetch(ahead_of<R>(w[n] + begin, stride), 0, R == 1 ? 3 : 2);
    }
    if (begin + kInt8Group <= depth) {
      BARK_UNROLL
      for (int k = 0; k < kInt8Group; k += 2 * kWidth) {
        VecS weight[N];
        BARK_UNROLL
        for (int n = 0; n < N; ++n) weight[n] = load_short(w[n] + begin + k);
        BARK_UNROLL
        for (int r = 0; r < R; ++r) {
          const VecS input = load_short(x + r * x_stride + begin + k);
          BARK_UNROLL
          for (int n = 0; n < N; ++n)
            inner[n * R + r] = add_products_anywhere(inner[n * R + r], weight[n], input);
        }
      }
    } else {
      for (int64_t k = begin; k < depth; k += 2 * kWidth) {
        const int64_t count = min64(2 * kWidth, depth - k);
        BARK_UNROLL
        for (int i = 0; i < N * R; ++i) {
          inner[i] = add_products_anywhere(inner[i], load_short_first(w[i / R] + k, count),
                                           load_short_first(x + i % R * x_stride + k, count));
        }
      }
    }
    BARK_UNROLL
    for (int i = 0; i < kFours; ++i) {
      const Vec4 four = sum_fours(inner[4 * i], inner[4 * i + 1], inner[4 * i + 2], inner[4 * i + 3]);
      if constexpr (R % 4 == 0) {
        acc[i] += four * scales[4 * i / R][g];
      } else {
        Vec4 each;
        BARK_UNROLL
        for (int j = 0; j < 4; ++j) each[j] = 4 * i + j < N * R ? scales[(4 * i + j) / R % N][g] : 0.0f;
        acc[i] += four * each;
      }
    }
  }
  BARK_UNROLL
  for (int i = 0; i < kFours; ++i) __builtin_memcpy(sums + 4 * i, &acc[i], sizeof acc[i]);
}

// ---- tiles of either kind

// N weight rows times R activation rows from r on.
template <typename T, int N, int R>
inline void dot_tile_at(const MatrixView& m, const int64_t* row, const Activations& a, int64_t r,
                        Result result) {
  const T* w[N];
  for (int n = 0; n < N; ++n) w[n] = static_cast<const T*>(m.weight) + row[n] * m.stride;
  if constexpr (sizeof(T) > 1) {
    float sums[N][R];
    dot_tile<T, N, R>(w, m.stride, a.x + r * a.x_stride, a.x_stride, m.depth, sums);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < R; ++i) result.put(r + i, row[n], sums[n][i]);
    }
  } else {
    const float* scales[N];
    for (int n = 0; n < N; ++n) scales[n] = m.scales + row[n] * m.scale_stride;
    float sums[(N * R + 3) / 4 * 4];
    dot_tile_int8<N, R>(w, m.stride, scales, a.quantized + r * a.x_stride, a.x_stride, m.depth, sums);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < R; ++i) result.put(r + i, row[n], sums[n * R + i] * a.scales[r + i]);
    }
  }
}

// All tiles of R activation rows from r on; returns the first row that is left. Only the first tile finds its
// weights in memory, and the others leave it idle, so all of them fetch what is ahead.
template <typename T, int R, int kAtOnce, int N>
inline int64_t dot_tiles(const MatrixView& m, const int64_t (&row)[N], const Activations& a, int64_t r,
                         Result result) {
  static_assert(N % kAtOnce == 0);
  for (; r + R <= a.rows; r += R) {
    for (int n = 0; n < N; n += kAtOnce) {
      dot_tile_at<T, kAtOnce, R>(m, row + n, a, r, result);
    }
  }
  return r;
}

template <typename T, int N>
inline void dot_rows_of(const MatrixView& m, const int64_t (&row)[N], const Activations& a, Result result) {
  // Weight rows beside 4 activation rows: their sums must stay in registers.
  constexpr int kAtOnce = kWidth == 16 ? N : (N + 1) / 2;
  constexpr bool kIsInt8 = sizeof(T) == 1;
  int64_t r = 0;
  r = dot_tiles<T, 4, kAtOnce>(m, row, a, r, result);
  if constexpr (kWidth == 16 && kIsInt8) r = dot_tiles<T, 3, N>(m, row, a, r, result);
  r = dot_tiles<T, 2, N>(m, row, a, r, result);
  dot_tiles<T, 1, N>(m, row, a, r, result);
}

template <int N>
inline void dot_any(const MatrixView& m, const int64_t (&row)[N], const Activations& a, Result result) {
  switch (m.dtype) {
    case DType::kFloat32:
      return dot_rows_of<float, N>(m, row, a, result);
    case DType::kFloat16:
      return dot_rows_of<Half, N>(m, row, a, result);
    case DType::kBFloat16:
      return dot_rows_of<BFloat16, N>(m, row, a, result);
    case DType::kInt8:
      return dot_rows_of<int8_t, N>(m, row, a, result);
  }
}

// y[r, n] = w[n] . x[r] for n in [begin, end)
inline void gemv(const MatrixView& m, const Activations& a, int64_t begin, int64_t end, Result result) {
  const int64_t quarter = (end - begin) / kStreams;
  for (int64_t i = 0; i < quarter; ++i) {
    const int64_t first = begin + i;
    const int64_t rows[kStreams] = {first, first + quarter, first + 2 * quarter, first + 3 * quarter};
    dot_any<kStreams>(m, rows, a, result);
  }
  for (int64_t n = begin + kStreams * quarter; n < end; ++n) {
    const int64_t row[1] = {n};
    dot_any<1>(m, row, a, result);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
