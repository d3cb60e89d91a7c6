// Addressing, and the cache append, shared by the attention kernels.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

struct Pair {
  int64_t b, h;
};

inline Pair pair_at(const AttentionParams& p, int64_t index) { return {index / p.heads, index % p.heads}; }

inline bool is_idle(const AttentionParams& p, Pair pair) { return p.lengths[pair.b] < 0; }

template <typename T>
inline const T* row_of(const void* base, const int64_t* strides, Pair pair, int64_t t) {
  return static_cast<const T*>(base) + pair.b * strides[0] + t * strides[1] + pair.h * strides[2];
}

template <typename T>
inline T* cache_of(void* base, const int64_t* strides, Pair pair) {
  return static_cast<T*>(base) + pair.b * strides[0] + pair.h * strides[1];
}

template <typename T>
inline T* out_row(const AttentionParams& p, Pair pair, int64_t t) {
  return static_cast<T*>(p.out) + ((pair.b * p.tokens + t) * p.heads + pair.h) * p.head_dim;
}

template <typename T>
void append_pair(const AttentionParams& p, Pair pair) {
  const int64_t length = p.lengths[pair.b];
  T* keys = cache_of<T>(p.key_cache, p.key_cache_strides, pair) + length * p.key_cache_strides[2];
  T* values = cache_of<T>(p.value_cache, p.value_cache_strides, pair) + length * p.value_cache_strides[2];
  for (int64_t t = 0; t < p.tokens; ++t) {
    __builtin_memcpy(keys + t * p.key_cache_strides[2], row_of<T>(p.key, p.key_strides, pair, t),
                     p.head_dim * sizeof(T));
    __builtin_memcpy(values + t * p.value_cache_strides[2], row_of<T>(p.value, p.value_strides, pair, t),
                     p.head_dim * sizeof(T));
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
