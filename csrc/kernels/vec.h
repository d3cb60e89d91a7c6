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
typedef int16_t VecS __attribute__((vector_size(kWidth * 4)));  // twice kWidth
typedef int8_t VecB __attribute__((vector_size(kWidth * 2)));   // twice kWidth
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

inline VecF velu(VecF x) { return x > 0.0f ? x : vexp(x) - 1.0f; }

// Within 1e-7 both.
inline VecF vsigmoid(VecF x) { return 1.0f / (1.0f + vexp(-x)); }
inline VecF vtanh(VecF x) { return 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f); }

// Error function within 1.5e-7: two polynomials, fitted to erf(x) / x on [0, 1) and -log(erfc(x)) on [1, 4].
inline VecF verf(VecF x) {
  const VecF magnitude = vabs(x);
  const VecF a = magnitude > 4.0f ? splat(4.0f) : magnitude;
  const VecF u = a * a;
  VecF small = splat(7.882497448e-05f);
  small = small * u + -8.018855006e-04f;
  small = small * u + 5.189312156e-03f;
  small = small * u + -2.685432881e-02f;
  small = small * u + 1.128359735e-01f;
  small = small * u + -3.761262596e-01f;
  small = small * u + 1.128379107e+00f;
  VecF q = splat(-1.614061603e-06f);
  q = q * a + 4.559062290e-05f;
  q = q * a + -5.927695311e-04f;
  q = q * a + 4.740222357e-03f;
  q = q * a + -2.636471763e-02f;
  q = q * a + 1.099782437e-01f;
  q = q * a + 6.319370866e-01f;
  q = q * a + 1.130166650e+00f;
  q = q * a + -3.032132990e-04f;
  const VecF large = 1.0f - vexp(-q);
  const VecF result = magnitude < 1.0f ? a * small : large;
  // The sign of x, and NaN stays NaN.
  const VecI sign = (VecI)x & VecI(VecI{} + INT32_MIN);
  return x != x ? x : (VecF)((VecI)result | sign);
}

// x * Phi(x), the exact GELU
inline VecF vgelu(VecF x) { return 0.5f * x * (1.0f + verf(x * 0.707106781186547524f)); }

// ---- int16 and int8: vectors of twice kWidth

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
