// SIMD on GCC/clang vector extensions. The width follows the flags of the translation unit.
// Everything lives in a namespace named after the instruction set (BARK_ACCEL_ISA), so that the linker can
// never pick an inline function compiled for AVX-512 on behalf of the generic path. For the same reason no
// C++ standard-library template is instantiated here.
#pragma once

#ifndef BARK_ACCEL_ISA
#error "define BARK_ACCEL_ISA (the namespace of this instruction set) before the kernels"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "params.h"

namespace bark_accel::BARK_ACCEL_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float VecF __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2)));
typedef float Vec4 __attribute__((vector_size(16)));

// Full unrolling, so that small arrays of vectors stay in registers.
#define BARK_UNROLL _Pragma("GCC unroll 16")

constexpr float kInfinity = __builtin_inff();

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

inline VecF splat(float x) { return VecF{} + x; }

// Keeps `a` where `b` is NaN.
inline VecF vmax(VecF a, VecF b) { return b > a ? b : a; }

inline VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof v); }

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: magnitude * 2^-24 is exact
    const float f = float(magnitude) * 5.9604644775390625e-8f;
    __builtin_memcpy(&bits, &f, 4);
  }
  bits |= sign;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

inline uint16_t float_to_half(float f) {  // round to nearest even
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (bits >= 0x47800000u) return uint16_t(sign | 0x7c00u);  // 65536 and above
  if (bits < 0x38800000u) {                                  // subnormal: let the float adder round
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    return uint16_t(sign | (bits - 0x3f000000u));
  }
  bits += 0xc8000fffu + (bits >> 13 & 1u);
  return uint16_t(sign | bits >> 13);
}

inline VecF load(const Half* p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  VecF v;
  for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

inline void store(Half* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

inline VecF load(const BFloat16* p) {
  VecH bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (VecF)(__builtin_convertvector(bits, VecU) << 16);
}

inline void store(BFloat16* p, VecF v) {  // round to nearest even
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const VecU quiet = VecU{} + 0x7fc0u;
  const VecH narrow = __builtin_convertvector(v != v ? quiet : rounded, VecH);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

// First n lanes from memory, zeros above: never touches memory beyond n elements.
template <typename T>
inline VecF load_first(const T* p, int64_t n) {
  T lanes[kWidth] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

template <typename T>
inline void store_first(T* p, VecF v, int64_t n) {
  T lanes[kWidth];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

// Converts n elements to float.
template <typename T>
inline void convert(float* to, const T* from, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load_first(from + i, n - i), n - i);
}

// One bit per lane of a comparison result.
inline uint32_t lane_mask(VecI comparison) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)comparison);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)comparison));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps((__m128)comparison));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kWidth; ++i) mask |= uint32_t(comparison[i] != 0) << i;
  return mask;
#endif
}

inline Vec4 fold_to_4(VecF v) {
  Vec4 quarters[kWidth / 4];
  __builtin_memcpy(quarters, &v, sizeof v);
  for (int half = kWidth / 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) quarters[i] += quarters[i + half];
  }
  return quarters[0];
}

inline float sum_lanes(VecF v) {
  const Vec4 s = fold_to_4(v);
  return (s[0] + s[2]) + (s[1] + s[3]);
}

inline float max_lanes(VecF v) {
  float m = v[0];
  for (int i = 1; i < kWidth; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// e^x within about 1 ulp; 0 below -87.3 (so also for -inf), NaN stays NaN. Cephes' polynomial.
inline VecF vexp(VecF x) {
  const VecF low = splat(-87.3f), high = splat(88.7f);
  VecF y = x < low ? low : x;
  y = y > high ? high : y;
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = y * 1.44269504088896341f + magic;
  const VecF n = shifted - magic;
  const VecF r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecF power = (VecF)(((VecI)shifted + (127 - 0x4b400000)) << 23);
  const VecF result = p * power;
  return x < low ? VecF{} : result;
}

}  // namespace bark_accel::BARK_ACCEL_ISA
