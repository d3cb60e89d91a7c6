// The words of an MT19937 generator (Matsumoto and Nishimura, 1998) and the exponential noise that
// ATen's CPU kernel makes of them: two 32-bit words an entry, 53 of their bits as u in [0, 1), -log1p(-u) in
// double, rounded to float. The words are kept untempered, so that only those in use cost more than the
// recurrence.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kFarWord = 397;  // the recurrence reaches this far; kMt19937Block is the other distance
typedef uint64_t VecEntries __attribute__((vector_size(kWidth * 8)));

inline VecU load(const uint32_t* p) {
  VecU v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// words[0, 624) are one block; appends `count` words (a multiple of 624) of the same sequence.
inline void mt19937_extend(uint32_t* words, int64_t count) {
  static_assert(kMt19937Block % kWidth == 0 && kWidth <= kMt19937Block - kFarWord);
  for (int64_t i = 0; i < count; i += kWidth) {
    const VecU low = load(words + i + 1);
    const VecU mixed = (load(words + i) & 0x80000000u) | (low & 0x7fffffffu);
    const VecU next = load(words + i + kFarWord) ^ (mixed >> 1) ^ (-(low & 1u) & 0x9908b0dfu);
    __builtin_memcpy(words + i + kMt19937Block, &next, sizeof next);
  }
}

template <typename U>
inline U temper(U y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// The noise of one entry, to the bit; `words` are its two.
inline float exponential(const uint32_t* words) {
  const uint64_t bits = uint64_t(temper(words[0])) << 32 | temper(words[1]);
  const double u = double(bits & ((uint64_t(1) << 53) - 1)) * 0x1p-53;
  return float(-__builtin_log1p(-u));
}

// -log1p(-u) = u + u^2/2 + u^3/3 + ...: all terms are positive, so the first ones are a lower bound.
inline VecF exponential_lower_bounds(const uint32_t* words) {
  VecU tempered[2] = {temper(load(words)), temper(load(words + kWidth))};
  VecEntries pairs;  // little-endian: the first word of each entry is the low half
  __builtin_memcpy(&pairs, tempered, sizeof pairs);
  const VecI high = __builtin_convertvector(pairs & 0x1fffffu, VecI);
  const VecI low = __builtin_convertvector(pairs >> 40, VecI);  // without its last 8 bits
  const VecF u =
      __builtin_convertvector(high, VecF) * 0x1p-21f + __builtin_convertvector(low, VecF) * 0x1p-45f;
  return u * (1.0f + u * (0.5f + u * (1.0f / 3 + u * (0.25f + u * 0.2f))));
}

inline void exponential_lower_bounds(float* to, const uint32_t* words, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, exponential_lower_bounds(words + 2 * i));
  if (i == count) return;
  uint32_t last[2 * kWidth] = {};
  __builtin_memcpy(last, words + 2 * i, 8 * (count - i));
  store_first(to + i, exponential_lower_bounds(last), count - i);
}

}  // namespace bark_accel::BARK_ACCEL_ISA
