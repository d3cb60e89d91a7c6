// A causal convolution over time in float32, time before channels: out[t] = bias + residual[t] + the sum over
// taps and channels of ELU(joined[t + tap * dilation]) * weight[tap], where `joined` is what came before and
// then the input. A task packs the rows it needs, each panel of kPanelRows outputs with the rows that its
// taps reach, channels first: then a tap is an offset, and nothing is packed once a tap.
//
// An element of the output is the sum of its groups, in order, and a group's sum is one chain in order of
// taps and channels: neither the panel it stands in nor the number of rows or threads shows in it.
#pragma once

#include "float32_linear.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int64_t kAhead =
    6;  // rows of a weight, which are far apart in memory, fetched before they are read
constexpr int64_t kChain = 64;        // products: shorter chains round less, and stock's waveform is near
constexpr int64_t kPanelsAtOnce = 4;  // of a single column: independent chains

inline int64_t window_rows(const Float32ConvParams& p) { return kPanelRows + (p.taps - 1) * p.dilation; }

// [C, window_rows], and room for what whole vectors write behind it.
inline int64_t float32_conv_window(const Float32ConvParams& p) {
  return p.product.inner * window_rows(p) + kWidth;
}

inline int64_t most_panels(const Float32ConvParams& p) {
  return float32_row_panels(p.product) / p.row_parts + 1;
}

// Floats: a task's windows, a column panel of a group, the sums of its row panels.
inline int64_t float32_conv_scratch(const Float32ConvParams& p) {
  return round_up(most_panels(p) * float32_conv_window(p), kWidth) + kChain * kPanelColumns +
         most_panels(p) * kTile;
}

inline const float* joined_row(const Float32ConvParams& p, int64_t row) {
  const int64_t left = (p.taps - 1) * p.dilation;
  return row < left ? p.before + row * p.before_stride
                    : p.product.input + (row - left) * p.product.input_stride;
}

// Rows from `first` on, those that do not exist as zeros. Vectors are stored whole: the later ones of a
// channel first, so that what they write behind their channel is overwritten by the next channels.
inline void pack_window(const Float32ConvParams& p, int64_t first, float* to) {
  const int64_t window = window_rows(p), channels = p.product.inner;
  const int64_t rows = min64(window, p.product.rows + (p.taps - 1) * p.dilation - first);
  for (int64_t k = 0; k < channels; k += kWidth) {
    const int64_t count = min64(kWidth, channels - k);
    for (int64_t i = (window - 1) / kWidth * kWidth; i >= 0; i -= kWidth) {
      VecPairs v[kWidth] = {};
      for (int64_t r = 0; r < min64(kWidth, rows - i); ++r) {
        const float* at = joined_row(p, first + i + r) + k;
        const VecF x = count == kWidth ? load(at) : load_first(at, count);
        v[r] = (VecPairs)(p.elu ? velu(x) : x);
      }
      transpose(v);
      for (int64_t c = 0; c < count; ++c) __builtin_memcpy(to + (k + c) * window + i, &v[c], sizeof v[c]);
    }
  }
}

// Some taps of some channels: several whole taps, or a part of one.
struct ConvGroup {
  int64_t tap, taps, channel, channels;
};

inline int64_t taps_at_once(const Float32ConvParams& p) {
  return p.product.inner < kChain ? kChain / p.product.inner : 1;
}

// The group after this one; no taps behind the last.
inline ConvGroup next_group(const Float32ConvParams& p, const ConvGroup& g) {
  const int64_t channel = g.channel + g.channels;
  if (channel < p.product.inner) return {g.tap, 1, channel, min64(kChain, p.product.inner - channel)};
  const int64_t tap = g.tap + g.taps;
  return {tap, min64(taps_at_once(p), p.taps - tap), 0, min64(kChain, p.product.inner)};
}

inline ConvGroup first_group(const Float32ConvParams& p) { return next_group(p, {0, 0, p.product.inner, 0}); }

// Columns [first, first + kPanelColumns) of a group; those beyond the matrix are zero.
inline void pack_taps(const Float32ConvParams& p, const ConvGroup& g, int64_t first, float* to) {
  const int64_t columns = p.product.columns;
  for (int64_t tap = g.tap; tap < g.tap + g.taps; ++tap) {
    const float* from = p.product.weight + (tap * p.product.inner + g.channel) * columns + first;
    for (int64_t c = 0; c < g.channels; ++c, from += columns, to += kPanelColumns) {
      if (c + kAhead < g.channels) {
        for (int64_t i = 0; i < kPanelColumns; i += 16) __builtin_prefetch(from + kAhead * columns + i);
      }
      for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
        const int64_t lanes = columns - first - half;
        store(to + half, lanes >= kWidth ? load(from + half)
                         : lanes > 0     ? load_first(from + half, lanes)
                                         : VecF{});
      }
    }
  }
}

// sums[kPanelRows, kPanelColumns] (+)= the taps' products; `rows` is the first tap's first channel.
__attribute__((noinline)) inline void multiply_taps(const float* rows, int64_t window, int64_t dilation,
                                                    const ConvGroup& g, const float* columns, bool first,
                                                    float* sums) {
  VecF acc[kPanelRows][2] = {};
  for (int64_t tap = 0; tap < g.taps; ++tap, rows += dilation) {
    const float* at = rows;
    for (int64_t c = 0; c < g.channels; ++c, at += window, columns += kPanelColumns) {
      const VecF b0 = load(columns), b1 = load(columns + kWidth);
      BARK_UNROLL
      for (int r = 0; r < kPanelRows; ++r) {
        const VecF a = splat(at[r]);
        acc[r][0] += a * b0;
        acc[r][1] += a * b1;
      }
    }
  }
  add_tile(acc, first, sums);
}

// The only column of kPanelsAtOnce panels: time in lanes.
inline void multiply_single(const Float32ConvParams& p, const float* windows, int64_t panel, int64_t panels) {
  const int64_t window = window_rows(p), size = float32_conv_window(p);
  const float* weight = p.product.weight;
  const float* at[kPanelsAtOnce];
  for (int64_t i = 0; i < kPanelsAtOnce; ++i) at[i] = windows + min64(i, panels - 1) * size;
  VecF acc[kPanelsAtOnce] = {};
  for (int64_t tap = 0; tap < p.taps; ++tap) {
    VecF sums[kPanelsAtOnce] = {};
    for (int64_t c = 0; c < p.product.inner; ++c) {
      const VecF w = splat(*weight++);
      BARK_UNROLL
      for (int i = 0; i < kPanelsAtOnce; ++i) sums[i] += load(at[i] + c * window + tap * p.dilation) * w;
    }
    BARK_UNROLL
    for (int i = 0; i < kPanelsAtOnce; ++i) acc[i] += sums[i];
  }
  for (int64_t i = 0; i < panels; ++i) {
    for (int64_t r = 0; r < kPanelRows && (panel + i) * kPanelRows + r < p.product.rows; ++r) {
      const int64_t row = (panel + i) * kPanelRows + r;
      const float residual = p.product.residual ? p.product.residual[row * p.product.residual_stride] : 0.0f;
      p.product.out[row] = acc[i][r] + (p.product.bias ? *p.product.bias : 0.0f) + residual;
    }
  }
}

// Row panels [begin, end), whose windows are packed, and one column panel.
inline void convolve_column(const Float32ConvParams& p, const float* windows, int64_t begin, int64_t end,
                            int64_t first_column, float* columns, float* tiles) {
  const int64_t window = window_rows(p), size = float32_conv_window(p);
  for (ConvGroup g = first_group(p), next; g.taps > 0; g = next) {
    next = next_group(p, g);
    const bool first = g.tap == 0 && g.channel == 0;
    pack_taps(p, g, first_column, columns);
    for (int64_t panel = begin; panel < end; ++panel) {
      float* sums = tiles + (panel - begin) * kTile;
      const float* rows = windows + (panel - begin) * size + g.channel * window + g.tap * p.dilation;
      multiply_taps(rows, window, p.dilation, g, columns, first, sums);
      if (next.taps == 0) write_floats(p.product, sums, panel * kPanelRows, first_column);
    }
  }
}

// Tasks are (part of the row panels, part of the column panels).
inline void float32_conv(const Float32ConvParams& p, int64_t task_begin, int64_t task_end, float* scratch) {
  const int64_t panels = float32_row_panels(p.product), size = float32_conv_window(p);
  const int64_t column_panels = (p.product.columns + kPanelColumns - 1) / kPanelColumns;
  float* columns = scratch + round_up(most_panels(p) * size, kWidth);
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t part = task / p.column_parts, column_part = task % p.column_parts;
    const int64_t begin = part * panels / p.row_parts, end = (part + 1) * panels / p.row_parts;
    if (task == task_begin || column_part == 0) {
      for (int64_t i = begin; i < end; ++i) pack_window(p, i * kPanelRows, scratch + (i - begin) * size);
    }
    if (p.product.columns == 1) {
      for (int64_t i = begin; i < end; i += kPanelsAtOnce)
        multiply_single(p, scratch + (i - begin) * size, i, min64(kPanelsAtOnce, end - i));
      continue;
    }
    for (int64_t c = column_part * column_panels / p.column_parts;
         c < (column_part + 1) * column_panels / p.column_parts; ++c)
      convolve_column(p, scratch, begin, end, c * kPanelColumns, columns, columns + kChain * kPanelColumns);
  }
}

}  // namespace bark_accel::BARK_ACCEL_ISA
