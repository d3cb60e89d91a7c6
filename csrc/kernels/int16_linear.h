// out = input * weight^T in integers: both sides are scaled to int16 per row and group of kGroup along K while they
// are packed into panels, multiplied and added in int32, and rescaled to float once a group.
//
// A group's scale keeps the Euclidean norm of its integers below sqrt(2^31), so no dot product can leave int32
// (Cauchy-Schwarz), whatever its partial sums do modulo 2^32. For normal data that leaves an rms of 2^15.5 / 16 a
// number, a relative rounding error of about 1e-4: less than float16's own.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kGroup = 256;
constexpr int64_t kPairs = kGroup / 2;
constexpr int kPanelRows = kWidth == 16 ? 14 : kWidth == 8 ? 6 : 4;  // accumulators: 2 * rows
constexpr int64_t kPanelColumns = 2 * kWidth;
// Each of the two factors, after roundings of up to 1/2: (46331 + 0.5 * sqrt(256))^2 < 2^31.
constexpr float kMaxNorm = 46331.0f;
constexpr float kMaxInteger = 32767.0f;
constexpr float kTiniest = 1e-37f;  // its reciprocal is finite; groups below count as zero

// Two int16 in each 32-bit lane.
typedef int32_t VecPairs __attribute__((vector_size(kWidth * 4)));

// acc += a.low * b.low + a.high * b.high, modulo 2^32
inline VecU add_products(VecU acc, VecPairs a, VecPairs b) {
#if defined(__AVX512VNNI__)
  return (VecU)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return acc + (VecU)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return acc + (VecU)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return acc + (VecU)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const VecI low = ((VecI)((VecU)a << 16) >> 16) * ((VecI)((VecU)b << 16) >> 16);
  return acc + (VecU)low + (VecU)((a >> 16) * (b >> 16));
#endif
}

inline VecPairs load_pairs(const int32_t* p) {
  VecPairs v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// tile[kPanelRows, kPanelColumns] = rows x columns over `pairs` pairs of k.
inline void multiply_panels(const int32_t* rows, const int32_t* columns, int64_t pairs, int32_t* tile) {
  VecU acc[kPanelRows][2] = {};
  for (int64_t k = 0; k < pairs; ++k) {
    const VecPairs b0 = load_pairs(columns + k * kPanelColumns);
    const VecPairs b1 = load_pairs(columns + k * kPanelColumns + kWidth);
    BARK_UNROLL
    for (int r = 0; r < kPanelRows; ++r) {
      const VecPairs a = VecPairs{} + rows[k * kPanelRows + r];
      acc[r][0] = add_products(acc[r][0], a, b0);
      acc[r][1] = add_products(acc[r][1], a, b1);
    }
  }
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    __builtin_memcpy(tile + r * kPanelColumns, &acc[r][0], sizeof(VecU));
    __builtin_memcpy(tile + r * kPanelColumns + kWidth, &acc[r][1], sizeof(VecU));
  }
}

inline VecF vabs(VecF x) { return (VecF)((VecI)x & 0x7fffffff); }

#if defined(__AVX512F__)
#define BARK_INTERLEAVE(a, b, i)                                                                                  \
  __builtin_shufflevector(a, b, i, i + 16, i + 1, i + 17, i + 2, i + 18, i + 3, i + 19, i + 4, i + 20, i + 5, \
                          i + 21, i + 6, i + 22, i + 7, i + 23)
#elif defined(__AVX2__)
#define BARK_INTERLEAVE(a, b, i) __builtin_shufflevector(a, b, i, i + 8, i + 1, i + 9, i + 2, i + 10, i + 3, i + 11)
#else
#define BARK_INTERLEAVE(a, b, i) __builtin_shufflevector(a, b, i, i + 4, i + 1, i + 5)
#endif

// Transposes kWidth vectors: log2(kWidth) perfect shuffles.
inline void transpose(VecPairs (&v)[kWidth]) {
  for (int round = 1; round < kWidth; round *= 2) {
    VecPairs w[kWidth];
    BARK_UNROLL
    for (int i = 0; i < kWidth / 2; ++i) {
      w[2 * i] = BARK_INTERLEAVE(v[i], v[i + kWidth / 2], 0);
      w[2 * i + 1] = BARK_INTERLEAVE(v[i], v[i + kWidth / 2], kWidth / 2);
    }
    __builtin_memcpy(&v, &w, sizeof v);
  }
}

// The factor that makes x[0, kGroup) integers.
inline float integer_factor(const float* x) {
  VecF top{};
  for (int64_t k = 0; k < kGroup; k += kWidth) {
    const VecF a = vabs(load(x + k));
    top = a < top ? top : a;  // may lose a NaN: the norm below keeps it
  }
  const float max = max_lanes(top);
  const float shrink = max < kTiniest ? 0.0f : 1.0f / max;
  VecF squares{};
  for (int64_t k = 0; k < kGroup; k += kWidth) {
    const VecF a = load(x + k) * shrink;
    squares += a * a;
  }
  const float norm = __builtin_sqrtf(sum_lanes(squares));  // at least 1, unless all is zero
  return shrink * (norm * kMaxInteger < kMaxNorm ? kMaxInteger : kMaxNorm / norm);
}

inline VecI to_integers(VecF x) {
  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
  return (VecI)(x + 12582912.0f);
}

// Scales kWidth vectors x[kWidth, kGroup) to integers: pairs[k * stride + lane], the k-th pair of each. A pair is two
// numbers that are kWidth apart. Writes `lanes` of every kWidth lanes; scales[lane] turns integers back.
inline void quantize_lanes(const float* x, int32_t* pairs, int64_t stride, int64_t lanes, float* scales) {
  float factors[kWidth];
  for (int64_t lane = 0; lane < kWidth; ++lane) {
    const float factor = factors[lane] = integer_factor(x + lane * kGroup);
    if (lane < lanes) scales[lane] = factor == 0.0f ? 0.0f : 1.0f / factor;
  }
  for (int64_t k = 0; k < kGroup; k += 2 * kWidth) {
    VecPairs v[kWidth];
    BARK_UNROLL
    for (int lane = 0; lane < kWidth; ++lane) {
      const float* from = x + lane * kGroup + k;
      const VecI low = to_integers(load(from) * factors[lane]);
      const VecI high = to_integers(load(from + kWidth) * factors[lane]);
      v[lane] = (VecPairs)(((VecU)low & 0xffffu) | (VecU)high << 16);
    }
    transpose(v);
    for (int64_t i = 0; i < kWidth; ++i) {
      __builtin_memcpy(pairs + (k / 2 + i) * stride, &v[i], lanes * sizeof(int32_t));
    }
  }
}

inline int64_t groups_of(const Int16LinearParams& p) { return (p.inner + kGroup - 1) / kGroup; }
inline int64_t row_panels(const Int16LinearParams& p) { return (p.rows + kPanelRows - 1) / kPanelRows; }

inline int64_t int16_packed_bytes(const Int16LinearParams& p) {
  return row_panels(p) * groups_of(p) * kPanelRows * int64_t(kPairs * sizeof(int32_t) + sizeof(float));
}

struct PackedRows {
  int32_t* pairs;  // [panels, groups, kPairs, kPanelRows]
  float* scales;   // [panels, groups, kPanelRows]
};

inline PackedRows packed_rows(const Int16LinearParams& p) {
  int32_t* pairs = static_cast<int32_t*>(p.packed);
  return {pairs, reinterpret_cast<float*>(pairs + row_panels(p) * groups_of(p) * kPairs * kPanelRows)};
}

inline void int16_pack_rows(const Int16LinearParams& p, int64_t panel_begin, int64_t panel_end) {
  const PackedRows packed = packed_rows(p);
  const int64_t groups = groups_of(p);
  float values[kWidth * kGroup];
  for (int64_t at = panel_begin * groups; at < panel_end * groups; ++at) {
    const int64_t first = at / groups * kPanelRows, k = at % groups * kGroup;
    const int64_t count = min64(kGroup, p.inner - k), rows = min64(kPanelRows, p.rows - first);
    if (count < kGroup || rows < kWidth) __builtin_memset(values, 0, sizeof values);
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_memcpy(values + r * kGroup, p.input + (first + r) * p.input_stride + k, count * sizeof(float));
    }
    quantize_lanes(values, packed.pairs + at * kPairs * kPanelRows, kPanelRows, kPanelRows,
                   packed.scales + at * kPanelRows);
  }
}

template <typename T>
inline void read_weights(const Int16LinearParams& p, int64_t column, int64_t k, int64_t count, float* to) {
  convert(to, static_cast<const T*>(p.weight) + column * p.weight_stride + k, count);
}

template <>
inline void read_weights<int8_t>(const Int16LinearParams& p, int64_t column, int64_t k, int64_t count, float* to) {
  const int8_t* from = static_cast<const int8_t*>(p.weight) + column * p.weight_stride + k;
  const float* scales = p.scales + column * p.scales_stride + k / kInt8Group;
  for (int64_t i = 0; i < count; i += kInt8Group) {
    const float scale = scales[i / kInt8Group];
    const int64_t end = min64(count, i + kInt8Group);
    for (int64_t j = i; j < end; ++j) to[j] = float(from[j]) * scale;
  }
}

inline void read_column(const Int16LinearParams& p, int64_t column, int64_t k, int64_t count, float* to) {
  if (p.scales) {
    read_weights<int8_t>(p, column, k, count, to);
  } else if (p.dtype == DType::kFloat16) {
    read_weights<Half>(p, column, k, count, to);
  } else if (p.dtype == DType::kBFloat16) {
    read_weights<BFloat16>(p, column, k, count, to);
  } else {
    read_weights<float>(p, column, k, count, to);
  }
}

// Columns [first, first + kPanelColumns) of group k / kGroup; those beyond the matrix are zero.
inline void pack_columns(const Int16LinearParams& p, int64_t first, int64_t k, int32_t* pairs, float* scales) {
  const int64_t count = min64(kGroup, p.inner - k);
  float values[kWidth * kGroup];
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    const int64_t columns = min64(kWidth, p.columns - first - half);
    if (count < kGroup || columns < kWidth) __builtin_memset(values, 0, sizeof values);
    for (int64_t c = 0; c < columns; ++c) read_column(p, first + half + c, k, count, values + c * kGroup);
    quantize_lanes(values, pairs + half, kPanelColumns, kWidth, scales + half);
  }
}

// erf within 2e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline VecF verf(VecF x) {
  const VecF a = vabs(x), t = 1.0f / (a * 0.3275911f + 1.0f);
  VecF poly = t * 1.061405429f - 1.453152027f;
  poly = poly * t + 1.421413741f;
  poly = poly * t - 0.284496736f;
  poly = poly * t + 0.254829592f;
  const VecF magnitude = 1.0f - poly * t * vexp(-a * a);
  return (VecF)((VecI)magnitude | ((VecI)x & int32_t(0x80000000)));
}

inline VecF gelu(VecF x) { return x * 0.5f * (verf(x * 0.70710678118654752f) + 1.0f); }

// Rescales one group's integers and adds them to `sums` (unless first).
inline void add_tile(const int32_t* tile, const float* row_scales, const float* column_scales, bool first,
                     float* sums) {
  const VecF scale0 = load(column_scales), scale1 = load(column_scales + kWidth);
  for (int64_t r = 0; r < kPanelRows; ++r) {
    VecI integers[2];
    __builtin_memcpy(&integers, tile + r * kPanelColumns, sizeof integers);
    float* to = sums + r * kPanelColumns;
    const VecF before0 = first ? VecF{} : load(to), before1 = first ? VecF{} : load(to + kWidth);
    store(to, __builtin_convertvector(integers[0], VecF) * (scale0 * row_scales[r]) + before0);
    store(to + kWidth, __builtin_convertvector(integers[1], VecF) * (scale1 * row_scales[r]) + before1);
  }
}

// A finished tile, with bias and GELU, to its place in the output.
inline void write_tile(const Int16LinearParams& p, const float* sums, int64_t first_row, int64_t first_column) {
  const int64_t rows = min64(kPanelRows, p.rows - first_row);
  for (int64_t c = 0; c < kPanelColumns && first_column + c < p.columns; c += kWidth) {
    const int64_t lanes = min64(kWidth, p.columns - first_column - c);
    const VecF bias = p.bias ? load_first(p.bias + first_column + c, lanes) : VecF{};
    for (int64_t r = 0; r < rows; ++r) {
      float* out = p.out + (first_row + r) * p.columns + first_column + c;
      VecF value = load(sums + r * kPanelColumns + c) + bias;
      if (p.gelu) value = gelu(value);
      lanes == kWidth ? store(out, value) : store_first(out, value, lanes);
    }
  }
}

struct MultiplyScratch {
  int32_t* columns;      // [kPairs, kPanelColumns]
  int32_t* tile;         // [kPanelRows, kPanelColumns]
  float* column_scales;  // [kPanelColumns]
  float* sums;           // [row panels of a task, kPanelRows, kPanelColumns]: strided output rows would thrash
};

constexpr int64_t kTile = kPanelRows * kPanelColumns;

inline int64_t int16_scratch(const Int16LinearParams& p) {
  return (kPairs + 1) * kPanelColumns + (row_panels(p) / p.row_parts + 2) * kTile;
}

inline MultiplyScratch carve_multiply(float* at) {
  int32_t* columns = reinterpret_cast<int32_t*>(at);
  int32_t* tile = columns + kPairs * kPanelColumns;
  float* column_scales = reinterpret_cast<float*>(tile + kTile);
  return {columns, tile, column_scales, column_scales + kPanelColumns};
}

inline void multiply_column_panel(const Int16LinearParams& p, int64_t first_column, int64_t panel_begin,
                                  int64_t panel_end, const MultiplyScratch& s) {
  const PackedRows packed = packed_rows(p);
  const int64_t groups = groups_of(p);
  for (int64_t g = 0; g < groups; ++g) {
    pack_columns(p, first_column, g * kGroup, s.columns, s.column_scales);
    const int64_t pairs = round_up(min64(kGroup, p.inner - g * kGroup), 2 * kWidth) / 2;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t at = panel * groups + g;
      float* sums = s.sums + (panel - panel_begin) * kTile;
      multiply_panels(packed.pairs + at * kPairs * kPanelRows, s.columns, pairs, s.tile);
      add_tile(s.tile, packed.scales + at * kPanelRows, s.column_scales, g == 0, sums);
      if (g == groups - 1) write_tile(p, sums, panel * kPanelRows, first_column);
    }
  }
}

// Tasks are (column panel, part of the row panels); a column panel is packed once a task.
inline void int16_multiply(const Int16LinearParams& p, int64_t begin, int64_t end, float* scratch) {
  const MultiplyScratch s = carve_multiply(scratch);
  const int64_t panels = row_panels(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.row_parts, column = task / p.row_parts * kPanelColumns;
    multiply_column_panel(p, column, part * panels / p.row_parts, (part + 1) * panels / p.row_parts, s);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
