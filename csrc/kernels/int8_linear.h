// out = input * weight^T where both are int8 with a scale for every kInt8Group numbers along k: the weight as
// it is stored, the input rounded here. A group's sum is exact (at most 64 * 255 * 127), and every
// instruction set has the same integers; groups are rescaled to float32 and added in order of k.
//
// Numbers of k stand side by side in 32-bit lanes, as in int16_panels.h: four bytes where the CPU multiplies
// bytes (AVX-512 VNNI, AVX-VNNI, sdot), else two int16. Saturating products of bytes (AVX2) are not used:
// they would lose large sums.
#pragma once

#include "int16_linear.h"
#include "int8_lanes.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr float kTiniestInt8 = 1e-36f;  // 127 times its reciprocal is finite; groups below count as zero

#ifdef BARK_MULTIPLIES_BYTES

constexpr int kTogether = 4;
constexpr int32_t kWeightFlip = int32_t(0x80808080u);  // weights plus 128: one side has to be unsigned

inline VecI add_lanes(VecI acc, VecPairs weights, VecPairs inputs) { return add_bytes(acc, weights, inputs); }

#elif defined(BARK_NEON) && defined(__ARM_FEATURE_DOTPROD)

constexpr int kTogether = 4;
constexpr int32_t kWeightFlip = 0;

#else

constexpr int kTogether = 2;
constexpr int32_t kWeightFlip = 0;

inline VecI add_lanes(VecI acc, VecPairs weights, VecPairs inputs) {
  return add_products(acc, (VecS)weights, (VecS)inputs);
}

#endif

inline VecPairs load_lanes(const int8_t* p) {
  if constexpr (kTogether == 4) return load_pairs(reinterpret_cast<const int32_t*>(p));
  return (VecPairs)load_short(p);
}

// kTogether numbers of k: acc += rows[kPanelRows] x columns[kPanelColumns].
inline void add_columns(VecI (&acc)[kPanelRows][2], const int32_t* rows, const int32_t* columns) {
#if defined(BARK_NEON)
  neon::add_bytes(acc, rows, columns);
#else
  const VecPairs b0 = load_pairs(columns), b1 = load_pairs(columns + kWidth);
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    const VecPairs a = VecPairs{} + rows[r];
    acc[r][0] = add_lanes(acc[r][0], b0, a);
    acc[r][1] = add_lanes(acc[r][1], b1, a);
  }
#endif
}

constexpr int64_t kSteps = kInt8Group / kTogether;

inline int64_t int8_groups(const IntLinearParams& p) { return int8_groups(p.inner); }

// One group of the rows of a panel.
struct Int8Rows {
  int32_t lanes[kSteps * kPanelRows];  // [kSteps, kPanelRows]
  int32_t excess[kPanelRows];          // what the flip of the weights adds to each row's products
  float scales[kPanelRows];
};

// One group of the columns of a panel: kInt8ColumnRows rows of kPanelColumns.
struct Int8Columns {
  int32_t lanes[kSteps * kPanelColumns];  // [kSteps, kPanelColumns]
  float scales[kPanelColumns];
};

constexpr int64_t kInt8ColumnRows = kSteps + 1;

inline int64_t int8_packed_bytes(const IntLinearParams& p) {
  return row_panels(p) * int8_groups(p) * int64_t(sizeof(Int8Rows));
}

// To the nearest integer, ties to even. Not by an addition, which a compiler may fuse with the product
// before.
inline VecI round_to_nearest(VecF v) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
  return (VecI)_mm_cvtps_epi32((__m128)v);
#elif defined(BARK_NEON)
  return (VecI)vcvtnq_s32_f32((float32x4_t)v);
#else
  VecI rounded;
  for (int i = 0; i < kWidth; ++i) rounded[i] = v[i] == v[i] ? int32_t(__builtin_lrintf(v[i])) : 0;
  return rounded;
#endif
}

inline void store_bytes(int8_t* p, VecI v) {
  typedef int8_t Narrow __attribute__((vector_size(kWidth)));
  const Narrow narrow = __builtin_convertvector(v, Narrow);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

// Rounds `count` numbers, and zeros behind them, to a group; returns their scale and adds up the integers.
inline float quantize_group(const float* x, int64_t count, int8_t* to, int32_t* total) {
  constexpr int kVectors = kInt8Group / kWidth;
  VecF values[kVectors];
  VecI top{};  // magnitudes sort like their bits, NaN above infinity
  BARK_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const int64_t left = count - i * kWidth;
    values[i] = left >= kWidth ? load(x + i * kWidth) : load_first(x + i * kWidth, left > 0 ? left : 0);
    top = larger(top, (VecI)vabs(values[i]));
  }
  int32_t bits = 0;
  for (int lane = 0; lane < kWidth; ++lane) bits = top[lane] > bits ? top[lane] : bits;
  float largest;
  __builtin_memcpy(&largest, &bits, 4);
  const float inverse = largest >= kTiniestInt8 && largest < kInfinity ? 127.0f / largest : 0.0f;
  BARK_UNROLL
  for (int i = 0; i < kVectors; ++i) store_bytes(to + i * kWidth, round_to_nearest(values[i] * inverse));
  *total = 0;
  for (int k = 0; k < kInt8Group; ++k) *total += to[k];
  // An infinite or NaN input makes its row NaN, through the scale.
  return largest < kTiniestInt8 ? 0.0f : largest / 127.0f;
}

// Groups of kWidth vectors, [kWidth, kInt8Group], side by side: to[kSteps, stride], `lanes` of each.
inline void lay_out(const int8_t* from, int32_t flip, int32_t* to, int64_t stride, int64_t lanes) {
  for (int64_t k = 0; k < kSteps; k += kWidth) {
    VecPairs v[kWidth];
    BARK_UNROLL
    for (int i = 0; i < kWidth; ++i) v[i] = load_lanes(from + i * kInt8Group + k * kTogether) ^ flip;
    transpose(v);
    for (int64_t i = 0; i < kWidth; ++i) {
      __builtin_memcpy(to + (k + i) * stride, &v[i], lanes * sizeof(int32_t));
    }
  }
}

inline void int8_pack_rows(const IntLinearParams& p, int64_t panel_begin, int64_t panel_end) {
  const int64_t groups = int8_groups(p);
  Int8Rows* packed = static_cast<Int8Rows*>(p.packed);
  int8_t bytes[kWidth * kInt8Group];
  for (int64_t i = panel_begin * groups; i < panel_end * groups; ++i) {
    const int64_t first = i / groups * kPanelRows, k = i % groups * kInt8Group;
    const int64_t rows = min64(kPanelRows, p.rows - first);
    __builtin_memset(bytes, 0, sizeof bytes);
    Int8Rows& to = packed[i];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      int32_t total = 0;
      to.scales[r] = r >= rows
                         ? 0.0f
                         : quantize_group(p.input + (first + r) * p.input_stride + k,
                                          min64(kInt8Group, p.inner - k), bytes + r * kInt8Group, &total);
      to.excess[r] = kWeightFlip ? 128 * total : 0;
    }
    lay_out(bytes, 0, to.lanes, kPanelRows, kPanelRows);
  }
}

// Columns [first, first + kPanelColumns); those beyond the matrix are zero.
inline void pack_int8_columns(const IntLinearParams& p, int64_t first, Int8Columns* to) {
  int8_t bytes[kWidth * kInt8Group];
  for (int64_t k = 0; k < p.inner; k += kInt8Group, ++to) {
    const int64_t count = min64(kInt8Group, p.inner - k);
    for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
      const int64_t columns = min64(kWidth, p.columns - first - half);
      if (count < kInt8Group || columns < kWidth) __builtin_memset(bytes, 0, sizeof bytes);
      for (int64_t c = 0; c < columns; ++c) {
        const int8_t* from = static_cast<const int8_t*>(p.weight) + (first + half + c) * p.weight_stride + k;
        __builtin_memcpy(bytes + c * kInt8Group, from, count);
      }
      lay_out(bytes, kWeightFlip, to->lanes + half, kPanelColumns, kWidth);
      for (int64_t c = 0; c < kWidth; ++c) {
        to->scales[half + c] =
            c < columns ? p.scales[(first + half + c) * p.scales_stride + k / kInt8Group] : 0.0f;
      }
    }
  }
}

inline void int8_pack_columns(const IntLinearParams& p, int64_t panel_begin, int64_t panel_end, int32_t* to) {
  Int8Columns* panels = reinterpret_cast<Int8Columns*>(to);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    pack_int8_columns(p, panel * kPanelColumns, panels + panel * int8_groups(p));
  }
}

// sums[kPanelRows, kPanelColumns] += rows x columns of one group. Always an addition, also to zeros: a
// compiler that saw a case without one would fuse it in some rows of the tile and not in others.
__attribute__((noinline)) inline void multiply_group(const Int8Rows& rows, const Int8Columns& columns,
                                                     float* sums) {
  VecI acc[kPanelRows][2] = {};
  for (int64_t k = 0; k < kSteps; ++k) {
    add_columns(acc, rows.lanes + k * kPanelRows, columns.lanes + k * kPanelColumns);
  }
  const VecF scale0 = load(columns.scales), scale1 = load(columns.scales + kWidth);
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    float* to = sums + r * kPanelColumns;
    const VecF whole0 = __builtin_convertvector(acc[r][0] - rows.excess[r], VecF);
    const VecF whole1 = __builtin_convertvector(acc[r][1] - rows.excess[r], VecF);
    store(to, load(to) + whole0 * (scale0 * rows.scales[r]));
    store(to + kWidth, load(to + kWidth) + whole1 * (scale1 * rows.scales[r]));
  }
}

// Floats: a column panel, and a tile of sums.
inline int64_t int8_scratch(const IntLinearParams& p) {
  return int8_groups(p) * int64_t(sizeof(Int8Columns) / sizeof(float)) + kTile;
}

// Tasks are (column panel, part of the row panels); a column panel is packed once a task, if it is not yet.
inline void int8_multiply(const IntLinearParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t panels = row_panels(p), groups = int8_groups(p);
  const Int8Rows* rows = static_cast<const Int8Rows*>(p.packed);
  Int8Columns* own = reinterpret_cast<Int8Columns*>(scratch + kTile);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.row_parts, column = task / p.row_parts * kPanelColumns;
    const Int8Columns* columns = own;
    if (p.panels) {
      columns = reinterpret_cast<const Int8Columns*>(p.panels) + column / kPanelColumns * groups;
    } else {
      pack_int8_columns(p, column, own);
    }
    for (int64_t panel = part * panels / p.row_parts; panel < (part + 1) * panels / p.row_parts; ++panel) {
      prefetch_output(p, panel * kPanelRows, column);
      __builtin_memset(scratch, 0, kTile * sizeof(float));
      for (int64_t g = 0; g < groups; ++g) multiply_group(rows[panel * groups + g], columns[g], scratch);
      write_tile(p, scratch, panel * kPanelRows, column);
    }
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
