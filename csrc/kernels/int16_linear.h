// out = input * weight^T in integers: the input is packed into row panels first, each column panel of the
// weight just before its use, so that no second copy of the weights stays, or long before
// (int16_pack_columns).
#pragma once

#include "int16_panels.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

inline int64_t groups_of(const IntLinearParams& p) { return (p.inner + kGroup - 1) / kGroup; }
inline int64_t row_panels(const IntLinearParams& p) { return (p.rows + kPanelRows - 1) / kPanelRows; }

inline int64_t int16_packed_bytes(const IntLinearParams& p) {
  return row_panels(p) * groups_of(p) * kPanelRows * int64_t(kPairs * sizeof(int32_t) + sizeof(float));
}

struct PackedRows {
  int32_t* pairs;  // [groups, panels, kPairs, kPanelRows]
  float* scales;   // [groups, panels, kPanelRows]
};

inline PackedRows packed_rows(const IntLinearParams& p) {
  int32_t* pairs = static_cast<int32_t*>(p.packed);
  return {pairs, reinterpret_cast<float*>(pairs + row_panels(p) * groups_of(p) * kPairs * kPanelRows)};
}

inline void int16_pack_rows(const IntLinearParams& p, int64_t panel_begin, int64_t panel_end) {
  const PackedRows packed = packed_rows(p);
  const int64_t groups = groups_of(p);
  float values[kWidth * kGroup];
  for (int64_t i = panel_begin * groups; i < panel_end * groups; ++i) {
    const int64_t first = i / groups * kPanelRows, k = i % groups * kGroup;
    const int64_t at = i % groups * row_panels(p) + i / groups;
    const int64_t count = min64(kGroup, p.inner - k), rows = min64(kPanelRows, p.rows - first);
    if (count < kGroup || rows < kWidth) __builtin_memset(values, 0, sizeof values);
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_memcpy(values + r * kGroup, p.input + (first + r) * p.input_stride + k,
                       count * sizeof(float));
    }
    quantize_lanes(values, kGroup, packed.pairs + at * kPairs * kPanelRows, kPanelRows, kPanelRows,
                   packed.scales + at * kPanelRows);
  }
}

template <typename T>
inline void read_weights(const IntLinearParams& p, int64_t column, int64_t k, int64_t count, float* to) {
  convert(to, static_cast<const T*>(p.weight) + column * p.weight_stride + k, count);
}

template <>
inline void read_weights<int8_t>(const IntLinearParams& p, int64_t column, int64_t k, int64_t count,
                                 float* to) {
  const int8_t* from = static_cast<const int8_t*>(p.weight) + column * p.weight_stride + k;
  const float* scales = p.scales + column * p.scales_stride + k / kInt8Group;
  for (int64_t i = 0; i < count; i += kWidth) {
    const VecF scale = splat(scales[i / kInt8Group]);
    const int64_t left = count - i;
    left >= kWidth ? store(to + i, load(from + i) * scale)
                   : store_first(to + i, load_first(from + i, left) * scale, left);
  }
}

inline void read_column(const IntLinearParams& p, int64_t column, int64_t k, int64_t count, float* to) {
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

// A group of a column panel: [kPairs, kPanelColumns] pairs, then a row of scales.
constexpr int64_t kColumnRows = kPairs + 1;
constexpr int64_t kColumnInts = kColumnRows * kPanelColumns;

inline float* scales_behind(int32_t* pairs) {
  return reinterpret_cast<float*>(pairs + kPairs * kPanelColumns);
}

// Columns [first, first + kPanelColumns) of group k / kGroup; those beyond the matrix are zero.
inline void pack_columns(const IntLinearParams& p, int64_t first, int64_t k, int32_t* pairs) {
  const int64_t count = min64(kGroup, p.inner - k);
  float values[kWidth * kGroup];
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    const int64_t columns = min64(kWidth, p.columns - first - half);
    if (count < kGroup || columns < kWidth) __builtin_memset(values, 0, sizeof values);
    for (int64_t c = 0; c < columns; ++c) read_column(p, first + half + c, k, count, values + c * kGroup);
    quantize_lanes(values, kGroup, pairs + half, kPanelColumns, kWidth, scales_behind(pairs) + half);
  }
}

inline void int16_pack_columns(const IntLinearParams& p, int64_t panel_begin, int64_t panel_end,
                               int32_t* to) {
  const int64_t groups = groups_of(p);
  for (int64_t i = panel_begin * groups; i < panel_end * groups; ++i) {
    pack_columns(p, i / groups * kPanelColumns, i % groups * kGroup, to + i * kColumnInts);
  }
}

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
inline void write_tile(const IntLinearParams& p, const float* sums, int64_t first_row, int64_t first_column) {
  const int64_t rows = min64(kPanelRows, p.rows - first_row);
  for (int64_t c = 0; c < kPanelColumns && first_column + c < p.columns; c += kWidth) {
    const int64_t lanes = min64(kWidth, p.columns - first_column - c);
    const VecF bias = p.bias ? load_first(p.bias + first_column + c, lanes) : VecF{};
    for (int64_t r = 0; r < rows; ++r) {
      float* out = p.out + (first_row + r) * p.columns + first_column + c;
      VecF value = load(sums + r * kPanelColumns + c) + bias;
      if (p.gelu) value = vgelu(value);
      lanes == kWidth ? store(out, value) : store_first(out, value, lanes);
    }
  }
}

// Output rows are far apart: ask for their lines while the tile is computed.
inline void prefetch_output(const IntLinearParams& p, int64_t first_row, int64_t first_column) {
  const int64_t rows = min64(kPanelRows, p.rows - first_row);
  for (int64_t r = 0; r < rows; ++r) {
    const float* out = p.out + (first_row + r) * p.columns + first_column;
    for (int64_t c = 0; c < kPanelColumns; c += 16) __builtin_prefetch(out + c, 1);
  }
}

struct MultiplyScratch {
  int32_t* columns;  // kColumnInts
  int32_t* tile;     // [kPanelRows, kPanelColumns]
  float* sums;       // [row panels of a task, kPanelRows, kPanelColumns]: strided output rows would thrash
};

inline int64_t int16_scratch(const IntLinearParams& p) {
  return kColumnInts + (row_panels(p) / p.row_parts + 2) * kTile;
}

inline MultiplyScratch carve_multiply(float* at) {
  int32_t* columns = reinterpret_cast<int32_t*>(at);
  int32_t* tile = columns + kColumnInts;
  return {columns, tile, reinterpret_cast<float*>(tile + kTile)};
}

inline void multiply_column_panel(const IntLinearParams& p, int64_t first_column, int64_t panel_begin,
                                  int64_t panel_end, const MultiplyScratch& s) {
  const PackedRows packed = packed_rows(p);
  const int64_t groups = groups_of(p);
  for (int64_t g = 0; g < groups; ++g) {
    int32_t* columns = s.columns;
    if (p.panels) {
      columns = const_cast<int32_t*>(p.panels) + (first_column / kPanelColumns * groups + g) * kColumnInts;
    } else {
      pack_columns(p, first_column, g * kGroup, columns);
    }
    const int64_t pairs = round_up(min64(kGroup, p.inner - g * kGroup), 2 * kWidth) / 2;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t at = g * row_panels(p) + panel;
      float* sums = s.sums + (panel - panel_begin) * kTile;
      if (g == groups - 1) prefetch_output(p, panel * kPanelRows, first_column);
      multiply_panels(packed.pairs + at * kPairs * kPanelRows, columns, pairs, s.tile);
      add_tile(s.tile, packed.scales + at * kPanelRows, scales_behind(columns), g == 0, sums);
      if (g == groups - 1) write_tile(p, sums, panel * kPanelRows, first_column);
    }
  }
}

// Tasks are (column panel, part of the row panels); a column panel is packed once a task, if it is not yet.
inline void int16_multiply(const IntLinearParams& p, int64_t begin, int64_t end, float* scratch) {
  const MultiplyScratch s = carve_multiply(scratch);
  const int64_t panels = row_panels(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.row_parts, column = task / p.row_parts * kPanelColumns;
    multiply_column_panel(p, column, part * panels / p.row_parts, (part + 1) * panels / p.row_parts, s);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
