// int16 and int8: vectors of twice kWidth, their products and sums.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

typedef int16_t VecS __attribute__((vector_size(kWidth * 4)));  // twice kWidth
typedef int8_t VecB __attribute__((vector_size(kWidth * 2)));   // twice kWidth

inline VecS load_short(const int16_t* p) {
  VecS v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline VecS load_short_first(const int16_t* p, int64_t n) {
  VecS v{};
  __builtin_memcpy(&v, p, n * sizeof(int16_t));
  return v;
}

// Spelled out: GCC 12 splits the conversion of a vector in two.
inline VecS widen(VecB v) {
#if defined(__AVX512BW__)
  return (VecS)_mm512_cvtepi8_epi16((__m256i)v);
#elif defined(__AVX2__)
  return (VecS)_mm256_cvtepi8_epi16((__m128i)v);
#else
  return __builtin_convertvector(v, VecS);
#endif
}

inline VecS load_short(const int8_t* p) {
  VecB v;
  __builtin_memcpy(&v, p, sizeof v);
  return widen(v);
}

inline VecS load_short_first(const int8_t* p, int64_t n) {
  VecB v{};
  __builtin_memcpy(&v, p, n);
  return widen(v);
}

// The sums of the lanes of four vectors, modulo 2^32. Spelled out: GCC 12 takes a shuffle of 16 lanes apart.
inline Vec4 sum_fours(VecI a, VecI b, VecI c, VecI d) {
#if defined(__AVX512F__)
  const auto halves = [](__m512i x, __m512i y) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
  };
  const __m512i ab = halves((__m512i)a, (__m512i)b), cd = halves((__m512i)c, (__m512i)d);
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
#elif defined(__AVX2__)
  const auto halves = [](__m256i x, __m256i y) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
  };
  const __m256i ab = halves((__m256i)a, (__m256i)b), cd = halves((__m256i)c, (__m256i)d);
  const __m256i half = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
#elif defined(BARK_NEON)
  const auto pairs = [](VecI x, VecI y) { return vpaddq_s32((int32x4_t)x, (int32x4_t)y); };
  const VecI sums = (VecI)vpaddq_s32(pairs(a, b), pairs(c, d));
#else
  const auto halves = [](VecU x, VecU y) {
    return __builtin_shufflevector(x, y, 0, 4, 1, 5) + __builtin_shufflevector(x, y, 2, 6, 3, 7);
  };
  const VecU ab = halves((VecU)a, (VecU)b), cd = halves((VecU)c, (VecU)d);
  const VecI sums =
      (VecI)(__builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
#endif
#if defined(__AVX2__)
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return (Vec4)_mm_cvtepi32_ps(sums);
#else
  return __builtin_convertvector(sums, Vec4);
#endif
}

// acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1], modulo 2^32
inline VecI add_products(VecI acc, VecS a, VecS b) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
  return (VecI)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif defined(__AVX512BW__)
  return (VecI)((VecU)acc + (VecU)_mm512_madd_epi16((__m512i)a, (__m512i)b));
#elif defined(__AVX2__)
  return (VecI)((VecU)acc + (VecU)_mm256_madd_epi16((__m256i)a, (__m256i)b));
#elif defined(__SSE2__)
  return (VecI)((VecU)acc + (VecU)_mm_madd_epi16((__m128i)a, (__m128i)b));
#elif defined(BARK_NEON)
  const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return (VecI)vaddq_s32((int32x4_t)acc, vpaddq_s32(low, vmull_high_s16((int16x8_t)a, (int16x8_t)b)));
#else
  for (int i = 0; i < kWidth; ++i) {
    acc[i] =
        int32_t(uint32_t(acc[i]) + uint32_t(a[2 * i] * b[2 * i]) + uint32_t(a[2 * i + 1] * b[2 * i + 1]));
  }
  return acc;
#endif
}

// The same where only the sum of all lanes counts: in which of them a product is added, is left open.
inline VecI add_products_anywhere(VecI acc, VecS a, VecS b) {
#if defined(BARK_NEON)
  const int32x4_t low = vmlal_s16((int32x4_t)acc, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return (VecI)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
#else
  return add_products(acc, a, b);
#endif
}

// Rounds n <= kWidth values within +-32767 to int16.
inline void store_short(int16_t* p, VecF v, int64_t n) {
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecI rounded = (VecI)(v + magic) - 0x4b400000;
  typedef int16_t Narrow __attribute__((vector_size(kWidth * 2)));
  const Narrow narrow = __builtin_convertvector(rounded, Narrow);
  __builtin_memcpy(p, &narrow, n * sizeof(int16_t));
}

}  // namespace bark_accel::BARK_ACCEL_ISA
