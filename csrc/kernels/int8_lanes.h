// Products of bytes in 32-bit lanes, where the instruction set has them without saturation.
#pragma once

#include "int16_panels.h"

namespace bark_accel::BARK_ACCEL_ISA {

inline int64_t int8_groups(int64_t depth) { return (depth + kInt8Group - 1) / kInt8Group; }

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define BARK_MULTIPLIES_BYTES

// acc + the four products of a lane, of unsigned bytes with signed ones
inline VecI add_bytes(VecI acc, VecPairs unsigned_bytes, VecPairs signed_bytes) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
  return (VecI)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
#endif
}
#endif

}  // namespace bark_accel::BARK_ACCEL_ISA
