// Integer panels shared by int16_linear.h and int16_attention.h: rows and columns scaled to int16 by groups
// along k, and the product of a row panel and a column panel in int32.
//
// A group's scale keeps the Euclidean norm of its integers below sqrt(2^31), so no dot product can leave
// int32 (Cauchy-Schwarz), whatever its partial sums do modulo 2^32. For normal data that leaves an rms of
// 2^15.5 / 16 a number, a relative rounding error of about 1e-4: less than float16's own.
#pragma once

#include "neon_panels.h"
#include "vec_short.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kGroup = 256;
constexpr int64_t kPairs = kGroup / 2;
constexpr int kPanelRows = kWidth == 16 ? 14 : kWidth == 8 ? 6 : 4;  // accumulators: 2 * rows
constexpr int64_t kPanelColumns = 2 * kWidth;
// Each of the two factors, after roundings of up to 1/2: (46331 + 0.5 * sqrt(256))^2 < 2^31.
constexpr float kMaxNorm = 46331.0f;
constexpr float kMaxInteger = 32767.0f;
constexpr float kTiniest = 1e-37f;  // its reciprocal is finite; groups below count as zero

// Two int16 in each 32-bit lane.
typedef int32_t VecPairs __attribute__((vector_size(kWidth * 4)));

// acc += a.low * b.low + a.high * b.high, modulo 2^32
inline VecU add_products(VecU acc, VecPairs a, VecPairs b) {
  return (VecU)add_products((VecI)acc, (VecS)a, (VecS)b);
}

inline VecPairs load_pairs(const int32_t* p) {
  VecPairs v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// One pair of k: acc += rows[kPanelRows] x columns[kPanelColumns].
inline void add_pairs(VecU (&acc)[kPanelRows][2], const int32_t* rows, const int32_t* columns) {
#if defined(BARK_NEON)
  neon::add_pairs(acc, rows, columns);
#else
  const VecPairs b0 = load_pairs(columns), b1 = load_pairs(columns + kWidth);
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    const VecPairs a = VecPairs{} + rows[r];
    acc[r][0] = add_products(acc[r][0], a, b0);
    acc[r][1] = add_products(acc[r][1], a, b1);
  }
#endif
}

// tile[kPanelRows, kPanelColumns] = rows x columns over `pairs` pairs of k.
inline void multiply_panels(const int32_t* rows, const int32_t* columns, int64_t pairs, int32_t* tile) {
  VecU acc[kPanelRows][2] = {};
  for (int64_t k = 0; k < pairs; ++k) {
    add_pairs(acc, rows + k * kPanelRows, columns + k * kPanelColumns);
  }
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    __builtin_memcpy(tile + r * kPanelColumns, &acc[r][0], sizeof(VecU));
    __builtin_memcpy(tile + r * kPanelColumns + kWidth, &acc[r][1], sizeof(VecU));
  }
}

#if defined(__AVX2__)
#define BARK_INTERLEAVE(a, b, i) \
  __builtin_shufflevector(a, b, i, i + 8, i + 1, i + 9, i + 2, i + 10, i + 3, i + 11)
#else
#define BARK_INTERLEAVE(a, b, i) __builtin_shufflevector(a, b, i, i + 4, i + 1, i + 5)
#endif

// Transposes kWidth vectors.
inline void transpose(VecPairs (&v)[kWidth]) {
#if defined(__AVX512F__)
  // Blocks of 4 x 4 in the 128-bit parts, then the parts: no index vectors, which cost copies.
  __m512i w[kWidth];
  BARK_UNROLL
  for (int i = 0; i < kWidth; i += 4) {
    const __m512i a = (__m512i)v[i], b = (__m512i)v[i + 1], c = (__m512i)v[i + 2], d = (__m512i)v[i + 3];
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    w[i] = _mm512_unpacklo_epi64(ab, cd);
    w[i + 1] = _mm512_unpackhi_epi64(ab, cd);
    w[i + 2] = _mm512_unpacklo_epi64(ab2, cd2);
    w[i + 3] = _mm512_unpackhi_epi64(ab2, cd2);
  }
  BARK_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512i even = _mm512_shuffle_i32x4(w[i], w[i + 4], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(w[i], w[i + 4], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(w[i + 8], w[i + 12], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(w[i + 8], w[i + 12], 0xdd);
    v[i] = (VecPairs)_mm512_shuffle_i32x4(even, even2, 0x88);
    v[i + 4] = (VecPairs)_mm512_shuffle_i32x4(odd, odd2, 0x88);
    v[i + 8] = (VecPairs)_mm512_shuffle_i32x4(even, even2, 0xdd);
    v[i + 12] = (VecPairs)_mm512_shuffle_i32x4(odd, odd2, 0xdd);
  }
#else
  // log2(kWidth) perfect shuffles
  for (int round = 1; round < kWidth; round *= 2) {
    VecPairs w[kWidth];
    BARK_UNROLL
    for (int i = 0; i < kWidth / 2; ++i) {
      w[2 * i] = BARK_INTERLEAVE(v[i], v[i + kWidth / 2], 0);
      w[2 * i + 1] = BARK_INTERLEAVE(v[i], v[i + kWidth / 2], kWidth / 2);
    }
    __builtin_memcpy(&v, &w, sizeof v);
  }
#endif
}

// The factor of each of kWidth vectors x[kWidth, kGroup], of which `length` numbers count, that makes it
// integers.
inline VecF integer_factors(const float* x, int64_t length) {
  VecF tops[kWidth], squares[kWidth];
  BARK_UNROLL
  for (int lane = 0; lane < kWidth; ++lane) {
    VecF top{};
    for (int64_t k = 0; k < length; k += kWidth) {
      const VecF a = vabs(load(x + lane * kGroup + k));
      top = a < top ? top : a;  // may lose a NaN: the norm below keeps it
    }
    tops[lane] = top;
  }
  const VecF max = max_each(tops);
  const VecF shrink = max < kTiniest ? VecF{} : 1.0f / max;
  BARK_UNROLL
  for (int lane = 0; lane < kWidth; ++lane) {
    VecF sum{};
    for (int64_t k = 0; k < length; k += kWidth) {
      const VecF a = load(x + lane * kGroup + k) * shrink[lane];
      sum += a * a;
    }
    squares[lane] = sum;
  }
  const VecF norm = vsqrt(sum_each(squares));  // at least 1, unless all is zero
  return shrink * (norm * kMaxInteger < kMaxNorm ? splat(kMaxInteger) : kMaxNorm / norm);
}

inline VecI to_integers(VecF x) {
  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
  return (VecI)(x + 12582912.0f);
}

// Multiplies kWidth vectors x[kWidth, kGroup], of which `length` numbers count (a multiple of 2 * kWidth), by
// a factor each and rounds: pairs[k * stride + lane], the k-th pair of each. A pair is two numbers that are
// kWidth apart. Writes `lanes` of every kWidth lanes.
inline void pack_lanes(const float* x, const float* factors, int64_t length, int32_t* pairs, int64_t stride,
                       int64_t lanes) {
  for (int64_t k = 0; k < length; k += 2 * kWidth) {
    VecPairs v[kWidth];
    BARK_UNROLL
    for (int lane = 0; lane < kWidth; ++lane) {
      const float* from = x + lane * kGroup + k;
      const VecI low = to_integers(load(from) * factors[lane]);
      const VecI high = to_integers(load(from + kWidth) * factors[lane]);
      v[lane] = (VecPairs)(((VecU)low & 0xffffu) | (VecU)high << 16);
    }
    transpose(v);
    for (int64_t i = 0; i < kWidth; ++i) {
      __builtin_memcpy(pairs + (k / 2 + i) * stride, &v[i], lanes * sizeof(int32_t));
    }
  }
}

// pack_lanes with each vector's own factor; scales[lane] turns the integers back.
inline void quantize_lanes(const float* x, int64_t length, int32_t* pairs, int64_t stride, int64_t lanes,
                           float* scales) {
  const VecF of_lanes = integer_factors(x, length);
  float factors[kWidth];
  store(factors, of_lanes);
  const VecF back = of_lanes == 0.0f ? VecF{} : 1.0f / of_lanes;
  lanes == kWidth ? store(scales, back) : store_first(scales, back, lanes);
  pack_lanes(x, factors, length, pairs, stride, lanes);
}

constexpr int64_t kTile = kPanelRows * kPanelColumns;

}  // namespace bark_accel::BARK_ACCEL_ISA
