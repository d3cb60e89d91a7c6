// The storage types of weights and caches, and loads of 16 bytes.
#pragma once

#include <cmath>
#include <cstring>

#include "../kernels/params.h"
#include "context.cuh"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace bark_accel::cuda {

template <class To, class From>
BARK_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

BARK_DEVICE float infinity() { return bit_cast<float>(0x7f800000u); }
BARK_DEVICE float not_a_number() { return bit_cast<float>(0x7fc00000u); }

BARK_DEVICE float to_float(float x) { return x; }
BARK_DEVICE float to_float(int8_t x) { return float(x); }
BARK_DEVICE float to_float(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
BARK_DEVICE float to_float(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // 2^112 moves the exponent's bias; an exponent of all ones stays one. Subnormals come out right as well.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits));
#endif
}

template <class T>
BARK_DEVICE T from_float(float x);

template <>
BARK_DEVICE float from_float<float>(float x) {
  return x;
}

template <>
BARK_DEVICE BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {0x7fc0};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
BARK_DEVICE Half from_float<Half>(float x) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000;
  const float magnitude = bit_cast<float>(bits & 0x7fffffff);
  if (x != x) return {0x7e00};
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  // Adding a number whose last place is the half's rounds to nearest even.
  const uint32_t exponent = bit_cast<uint32_t>(magnitude) >> 23;
  const uint32_t anchor = (exponent < 113 ? 113 : exponent) + 13;
  const float base = bit_cast<float>(anchor << 23);
  const uint32_t rounded = bit_cast<uint32_t>(magnitude + base) - bit_cast<uint32_t>(base);
  return {uint16_t(sign | (rounded + ((anchor - 126) << 10)))};
#endif
}

// Elements in 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

struct alignas(16) Words {
  uint32_t word[4];
};

template <class T>
BARK_DEVICE T element_of(const Words& w, int i) {
  if constexpr (sizeof(T) == 4) return bit_cast<T>(w.word[i]);
  if constexpr (sizeof(T) == 2) return bit_cast<T>(uint16_t(w.word[i / 2] >> (16 * (i % 2))));
  if constexpr (sizeof(T) == 1) return bit_cast<T>(uint8_t(w.word[i / 4] >> (8 * (i % 4))));
}

// The first `left` of kVector elements at `from`, zeros after them. `aligned`: `from` is aligned to 16 bytes.
template <class T>
BARK_DEVICE void load_vector(const T* from, int64_t left, bool aligned, float (&to)[kVector<T>]) {
  if (aligned && left >= kVector<T>) {
    const Words words = *reinterpret_cast<const Words*>(from);
    BARK_UNROLL
    for (int i = 0; i < kVector<T>; ++i) to[i] = to_float(element_of<T>(words, i));
  } else {
    BARK_UNROLL
    for (int i = 0; i < kVector<T>; ++i) to[i] = i < left ? to_float(from[i]) : 0.0f;
  }
}

BARK_BOTH bool is_aligned(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride_bytes % 16 == 0;
}

BARK_BOTH int64_t size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}

// f(T{}) for the type of `dtype`; int8 is none of them.
template <class F>
void with_float_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

}  // namespace bark_accel::cuda
