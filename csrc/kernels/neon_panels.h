// Panels of integers on NEON: each number of four rows is multiplied from its lane of one vector, so that
// nothing is spread and no neighbours have to be added.
#pragma once

#include "vec.h"

#if defined(BARK_NEON)

namespace bark_accel::BARK_ACCEL_ISA::neon {

// For rows 0 to 3: BARK_ROW(row, the lanes of its numbers).
#define BARK_ROWS \
  BARK_ROW(0, 0)  \
  BARK_ROW(1, 2)  \
  BARK_ROW(2, 4)  \
  BARK_ROW(3, 6)

// acc += rows x columns, modulo 2^32: two int16 of k in each of 4 rows and of 8 columns.
template <typename T>
inline void add_pairs(T (&acc)[4][2], const int32_t* rows, const int32_t* columns) {
  const int16_t* at = reinterpret_cast<const int16_t*>(columns);
  const int16x8_t a = vld1q_s16(reinterpret_cast<const int16_t*>(rows));
  const int16x8_t b0 = vld1q_s16(at), b1 = vld1q_s16(at + 8);
  const int16x8_t first = vuzp1q_s16(b0, b1), second = vuzp2q_s16(b0, b1);
#define BARK_ROW(r, lane)                                                   \
  {                                                                         \
    int32x4_t low = (int32x4_t)acc[r][0], high = (int32x4_t)acc[r][1];      \
    low = vmlal_laneq_s16(low, vget_low_s16(first), a, lane);               \
    high = vmlal_high_laneq_s16(high, first, a, lane);                      \
    acc[r][0] = (T)vmlal_laneq_s16(low, vget_low_s16(second), a, lane + 1); \
    acc[r][1] = (T)vmlal_high_laneq_s16(high, second, a, lane + 1);         \
  }
  BARK_ROWS
#undef BARK_ROW
}

// The same for int8_linear.h: four bytes where there is sdot, else two int16.
inline void add_bytes(VecI (&acc)[4][2], const int32_t* rows, const int32_t* columns) {
#if defined(__ARM_FEATURE_DOTPROD)
  const int8_t* at = reinterpret_cast<const int8_t*>(columns);
  const int8x16_t a = vld1q_s8(reinterpret_cast<const int8_t*>(rows));
  const int8x16_t b0 = vld1q_s8(at), b1 = vld1q_s8(at + 16);
#define BARK_ROW(r, lane)                                                   \
  acc[r][0] = (VecI)vdotq_laneq_s32((int32x4_t)acc[r][0], b0, a, lane / 2); \
  acc[r][1] = (VecI)vdotq_laneq_s32((int32x4_t)acc[r][1], b1, a, lane / 2);
  BARK_ROWS
#undef BARK_ROW
#else
  add_pairs(acc, rows, columns);
#endif
}

#undef BARK_ROWS

}  // namespace bark_accel::BARK_ACCEL_ISA::neon

#endif
