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
#elif defined(BARK_NEON)
#include <arm_neon.h>
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

// Minus zero: adding it would be an instruction (-0 + 0 is 0).
inline VecF splat(float x) { return x - VecF{}; }

// Keeps `a` where `b` is NaN.
inline VecF vmax(VecF a, VecF b) { return b > a ? b : a; }

inline VecI larger(VecI a, VecI b) { return b > a ? b : a; }

inline VecF vabs(VecF v) { return (VecF)((VecI)v & (VecI{} + 0x7fffffff)); }

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
#elif defined(BARK_NEON)
  return (VecF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
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
#elif defined(BARK_NEON)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
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

inline VecF load(const int8_t* p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (VecF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  VecF v;
  for (int i = 0; i < kWidth; ++i) v[i] = p[i];
  return v;
#endif
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

#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)  // which does not see what a masked load reads
inline VecF load_first(const float* p, int64_t n) {
  return (VecF)_mm512_maskz_loadu_ps(n < kWidth ? (1u << n) - 1 : 0xffff, p);
}
#endif

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
#elif defined(BARK_NEON)
  const VecU bits = {1, 2, 4, 8};
  return vaddvq_u32((uint32x4_t)((VecU)comparison & bits));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kWidth; ++i) mask |= uint32_t(comparison[i] != 0) << i;
  return mask;
#endif
}

// Adds neighbours, then neighbouring pairs and so on: the order of sum_each, so that how many sums are taken
// at once does not show in any of them.
inline float sum_lanes(VecF v) {
  Vec4 parts[kWidth / 4];
  __builtin_memcpy(parts, &v, sizeof v);
  for (int count = kWidth / 8; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) {
      const Vec4 a = parts[2 * i], b = parts[2 * i + 1];
      parts[i] = __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
    }
  }
  const Vec4 s = parts[0];
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// The even lanes of a, then those of b.
inline VecF even_lanes(VecF a, VecF b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}

inline VecF odd_lanes(VecF a, VecF b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Sums of neighbouring lanes: those of a in the lower half, those of b in the upper one.
inline VecF sum_neighbours(VecF a, VecF b) { return even_lanes(a, b) + odd_lanes(a, b); }

// Lane i of the result is the sum of the lanes of v[i]: about three operations a vector, sum_lanes takes ten.
inline VecF sum_each(VecF (&v)[kWidth]) {
  BARK_UNROLL
  for (int count = kWidth / 2; count > 0; count /= 2) {
    BARK_UNROLL
    for (int i = 0; i < count; ++i) v[i] = sum_neighbours(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

// Lane i of the result is the largest lane of v[i], which may be a NaN or lose one.
inline VecF max_each(VecF (&v)[kWidth]) {
  BARK_UNROLL
  for (int count = kWidth / 2; count > 0; count /= 2) {
    BARK_UNROLL
    for (int i = 0; i < count; ++i)
      v[i] = vmax(even_lanes(v[2 * i], v[2 * i + 1]), odd_lanes(v[2 * i], v[2 * i + 1]));
  }
  return v[0];
}

inline VecF vsqrt(VecF v) {
#if defined(__AVX512F__)
  return (VecF)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (VecF)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

inline float max_lanes(VecF v) {
  float m = v[0];
  for (int i = 1; i < kWidth; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

}  // namespace bark_accel::BARK_ACCEL_ISA
