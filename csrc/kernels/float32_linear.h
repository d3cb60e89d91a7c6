// out = input * weight^T (+ bias, GELU, residual) in float32. The input is packed into row panels first, each
// column panel of the weight just before its use, so that no copy of the weights stays.
//
// An element of the output is the sum of its groups of kDepth products, in order, and a group's sum is one
// chain in order of k: neither the tile it stands in nor the number of rows or threads shows in it.
#pragma once

#include "int16_panels.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kDepth = 256;  // a column panel of so many k stays in the first cache

inline int64_t float32_row_panels(const Float32LinearParams& p) {
  return (p.rows + kPanelRows - 1) / kPanelRows;
}

// [groups, panels, kDepth, kPanelRows]
inline int64_t float32_packed(const Float32LinearParams& p) {
  return float32_row_panels(p) * kPanelRows * round_up(p.inner, kDepth);
}

inline float* packed_panel(const Float32LinearParams& p, int64_t group, int64_t panel) {
  return p.packed + (group * float32_row_panels(p) + panel) * kDepth * kPanelRows;
}

// to[k * stride + i] = from[i * from_stride + k] for k < depth and `vectors` (at most kWidth) vectors i; the
// lanes up to `lanes` that no vector fills become zero.
inline void interleave(const float* from, int64_t from_stride, int64_t vectors, int64_t depth, float* to,
                       int64_t stride, int64_t lanes) {
  for (int64_t k = 0; k < depth; k += kWidth) {
    const int64_t count = min64(kWidth, depth - k);
    VecPairs v[kWidth] = {};
    for (int64_t i = 0; i < vectors; ++i) {
      const float* at = from + i * from_stride + k;
      v[i] = (VecPairs)(count == kWidth ? load(at) : load_first(at, count));
    }
    transpose(v);
    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(to + (k + i) * stride, &v[i], lanes * sizeof(float));
  }
}

inline void float32_pack_rows(const Float32LinearParams& p, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t first = panel * kPanelRows, rows = min64(kPanelRows, p.rows - first);
    for (int64_t k = 0; k < p.inner; k += kDepth) {
      interleave(p.input + first * p.input_stride + k, p.input_stride, rows, min64(kDepth, p.inner - k),
                 packed_panel(p, k / kDepth, panel), kPanelRows, kPanelRows);
    }
  }
}

// Columns [first, first + kPanelColumns) from k on; those beyond the matrix are zero.
inline void pack_float_columns(const Float32LinearParams& p, int64_t first, int64_t k, float* to) {
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    const int64_t columns = min64(kWidth, p.columns - first - half);
    interleave(p.weight + (first + half) * p.weight_stride + k, p.weight_stride, columns,
               min64(kDepth, p.inner - k), to + half, kPanelColumns, kWidth);
  }
}

// sums[kPanelRows, kPanelColumns] (+)= a tile in registers.
__attribute__((always_inline)) inline void add_tile(const VecF (&acc)[kPanelRows][2], bool first,
                                                    float* sums) {
  BARK_UNROLL
  for (int r = 0; r < kPanelRows; ++r) {
    float* to = sums + r * kPanelColumns;
    store(to, first ? acc[r][0] : load(to) + acc[r][0]);
    store(to + kWidth, first ? acc[r][1] : load(to + kWidth) + acc[r][1]);
  }
}

// sums[kPanelRows, kPanelColumns] (+)= rows x columns over `depth`.
__attribute__((noinline)) inline void multiply_floats(const float* rows, const float* columns, int64_t depth,
                                                      bool first, float* sums) {
  VecF acc[kPanelRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const VecF b0 = load(columns + k * kPanelColumns), b1 = load(columns + k * kPanelColumns + kWidth);
    BARK_UNROLL
    for (int r = 0; r < kPanelRows; ++r) {
      const VecF a = splat(rows[k * kPanelRows + r]);
      acc[r][0] += a * b0;
      acc[r][1] += a * b1;
    }
  }
  add_tile(acc, first, sums);
}

// A finished tile, with bias, GELU and residual, to its place in the output.
inline void write_floats(const Float32LinearParams& p, const float* sums, int64_t first_row,
                         int64_t first_column) {
  const int64_t rows = min64(kPanelRows, p.rows - first_row);
  for (int64_t c = 0; c < kPanelColumns && first_column + c < p.columns; c += kWidth) {
    const int64_t lanes = min64(kWidth, p.columns - first_column - c);
    const VecF bias = p.bias ? load_first(p.bias + first_column + c, lanes) : VecF{};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first_row + r, column = first_column + c;
      VecF value = load(sums + r * kPanelColumns + c) + bias;
      if (p.gelu) value = vgelu(value);
      if (p.residual) {
        const float* from = p.residual + row * p.residual_stride + column;
        value += lanes == kWidth ? load(from) : load_first(from, lanes);
      }
      float* out = p.out + row * p.columns + column;
      lanes == kWidth ? store(out, value) : store_first(out, value, lanes);
    }
  }
}

// Floats: a column panel, and the sums of a task's row panels (strided output rows would thrash).
inline int64_t float32_scratch(const Float32LinearParams& p) {
  return kDepth * kPanelColumns + (float32_row_panels(p) / p.row_parts + 1) * kTile;
}

inline void multiply_column(const Float32LinearParams& p, int64_t first_column, int64_t panel_begin,
                            int64_t panel_end, float* scratch) {
  float* tiles = scratch + kDepth * kPanelColumns;
  for (int64_t k = 0; k < p.inner; k += kDepth) {
    const int64_t depth = min64(kDepth, p.inner - k);
    pack_float_columns(p, first_column, k, scratch);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      float* sums = tiles + (panel - panel_begin) * kTile;
      multiply_floats(packed_panel(p, k / kDepth, panel), scratch, depth, k == 0, sums);
      if (k + depth == p.inner) write_floats(p, sums, panel * kPanelRows, first_column);
    }
  }
}

// Tasks are (column panel, part of the row panels); a column panel is packed once a task.
inline void float32_multiply(const Float32LinearParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t panels = float32_row_panels(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.row_parts, column = task / p.row_parts * kPanelColumns;
    multiply_column(p, column, part * panels / p.row_parts, (part + 1) * panels / p.row_parts, scratch);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
