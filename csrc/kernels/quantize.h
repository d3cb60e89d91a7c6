// Rows of floats as integers and a scale that they are multiplied with. What is infinite or no number makes
// the scale so, and with it all that is computed from the row.
#pragma once

#include "vec_short.h"

namespace bark_accel::BARK_ACCEL_ISA {

// The bits of magnitudes sort like the magnitudes, with NaN above infinity: vmax would lose a NaN.
inline float largest_magnitude(const float* x, int64_t n) {
  VecI top{};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) top = larger(top, (VecI)vabs(load(x + i)));
  if (i < n) top = larger(top, (VecI)vabs(load_first(x + i, n - i)));
  int32_t bits = 0;
  for (int lane = 0; lane < kWidth; ++lane) bits = top[lane] > bits ? top[lane] : bits;
  float largest;
  __builtin_memcpy(&largest, &bits, 4);
  return largest;
}

// The factor that makes integers up to `most` of a row; 0 where there is none.
inline float to_integers(float largest, float most) {
  const float factor = most / largest;
  return largest > 0 && largest < kInfinity && factor < kInfinity ? factor : 0.0f;
}

// int16 numbers and the scale of the row, so that x ~ quantized * scale within 2^-16 of its largest value.
inline void quantize_row(const float* x, int64_t n, int16_t* quantized, float* scale) {
  const float largest = largest_magnitude(x, n), factor = to_integers(largest, 32767.0f);
  *scale = largest / 32767.0f;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_short(quantized + i, load(x + i) * factor, kWidth);
  if (i < n) store_short(quantized + i, load_first(x + i, n - i) * factor, n - i);
}

// ---- rows of a cache: of an int8 one the scale stands behind the integers, in kCacheScaleBytes bytes

template <typename T>
inline int64_t row_bytes(int64_t head_dim) {
  return head_dim * int64_t(sizeof(T)) + (sizeof(T) == 1 ? kCacheScaleBytes : 0);
}

template <typename T>
inline void write_row(T* row, const float* x, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    const int64_t n = min64(kWidth, head_dim - d);
    store_first(row + d, load_first(x + d, n), n);
  }
}

inline void write_row(int8_t* row, const float* x, int64_t head_dim) {
  typedef int8_t Narrow __attribute__((vector_size(kWidth)));
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const float largest = largest_magnitude(x, head_dim), factor = to_integers(largest, 127.0f);
  const float scale = largest / 127.0f;
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    const int64_t n = min64(kWidth, head_dim - d);
    const VecI rounded = (VecI)(load_first(x + d, n) * factor + magic) - 0x4b400000;
    const Narrow narrow = __builtin_convertvector(rounded, Narrow);
    __builtin_memcpy(row + d, &narrow, n);
  }
  __builtin_memcpy(row + head_dim, &scale, kCacheScaleBytes);
}

}  // namespace bark_accel::BARK_ACCEL_ISA
