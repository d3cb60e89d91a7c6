// int8 weights times several rows of int16 activations. A block of weight rows is laid out once with its
// outputs side by side in the lanes, and multiplied with every row of activations while it is in the nearest
// cache: no sums across lanes, and one load of an activation for a whole vector of outputs. Sums are those of
// gemv.h.
#pragma once

#include "gemv.h"
#include "int8_lanes.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr int kBatchRows = kWidth == 16  ? 8
                           : kWidth == 8 ? 6
                                         : 4;    // of one tile, which has twice as many accumulators
constexpr int64_t kBatchLanes = kInt8Group / 2;  // of 32 bits, for a group of int16 numbers
constexpr int64_t kLeastBatch = 5;               // rows from which on it is faster than gemv

// Numbers of 32 bits for pack_batch's result, and floats for the sums of a block.
inline int64_t batch_inputs(int64_t rows, int64_t depth) {
  return round_up(rows, kWidth) * int8_groups(depth) * kBatchLanes;
}
inline int64_t batch_sums(int64_t rows) { return rows * kPanelColumns; }

// Bytes [kWidth, kInt8Group], a row every `stride`, to [kInt8Group / 4, to_stride]: four neighbours in each
// lane.
template <typename Store>
inline void turn_bytes(const int8_t* from, int64_t stride, const Store& store) {
  for (int64_t k = 0; k < kInt8Group; k += 4 * kWidth) {
    VecPairs v[kWidth];
    BARK_UNROLL
    for (int i = 0; i < kWidth; ++i) __builtin_memcpy(&v[i], from + i * stride + k, sizeof v[i]);
    transpose(v);
    BARK_UNROLL
    for (int i = 0; i < kWidth; ++i) store(k / 4 + i, v[i]);
  }
}

#ifdef BARK_MULTIPLIES_BYTES

// An activation plus 2^15 is 256 * high + low, both unsigned bytes: two products with signed bytes are exact.

struct BatchBlock {
  int32_t lanes[kInt8Group / 4 * kPanelColumns];  // [kInt8Group / 4, kPanelColumns]: bytes k .. k + 3
  int32_t start[kPanelColumns];                   // takes 2^15 times the weights away again, once shifted
};

inline void lay_block(const int8_t* from, int64_t stride, BatchBlock& to) {
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    VecI totals[4] = {};  // independent sums, as one waits for the other
    turn_bytes(from + half * stride, stride, [&](int64_t k, VecPairs four) {
      __builtin_memcpy(to.lanes + k * kPanelColumns + half, &four, sizeof four);
      totals[k % 4] = add_bytes(totals[k % 4], VecPairs{} + 0x01010101, four);
    });
    const VecI start = (totals[0] + totals[1] + (totals[2] + totals[3])) * -128;
    __builtin_memcpy(to.start + half, &start, sizeof start);
  }
}

// One group: high bytes, then low ones, [kInt8Group / 4, kWidth] each.
inline void pack_group(const int16_t (&from)[kWidth][kInt8Group], int32_t* to) {
  int8_t bytes[2][kWidth][kInt8Group];
  for (int64_t r = 0; r < kWidth; ++r) {
    for (int64_t k = 0; k < kInt8Group; ++k) {
      bytes[0][r][k] = int8_t((from[r][k] >> 8) ^ 0x80);
      bytes[1][r][k] = int8_t(from[r][k]);
    }
  }
  for (const auto& part : bytes) {
    turn_bytes(&part[0][0], kInt8Group,
               [&](int64_t k, VecPairs four) { __builtin_memcpy(to + k * kWidth, &four, sizeof four); });
    to += kInt8Group / 4 * kWidth;
  }
}

// acc += inputs x block, of a group's high or low bytes
template <int R>
inline void multiply_lanes(const BatchBlock& block, const int32_t* inputs, const char* ahead,
                           VecI (&acc)[R][2]) {
  for (int64_t k = 0; k < kInt8Group / 4; ++k) {
    __builtin_prefetch(ahead + 64 * k, 0, 2);
    const VecPairs w0 = load_pairs(block.lanes + k * kPanelColumns);
    const VecPairs w1 = load_pairs(block.lanes + k * kPanelColumns + kWidth);
    BARK_UNROLL
    for (int r = 0; r < R; ++r) {
      const VecPairs input = VecPairs{} + inputs[k * kWidth + r];
      acc[r][0] = add_bytes(acc[r][0], input, w0);
      acc[r][1] = add_bytes(acc[r][1], input, w1);
    }
  }
}

template <int R>
inline void multiply_group(const BatchBlock& block, const int32_t* inputs, const char* ahead,
                           VecI (&acc)[R][2]) {
  const VecI start0 = load_pairs(block.start), start1 = load_pairs(block.start + kWidth);
  BARK_UNROLL
  for (int r = 0; r < R; ++r) {
    acc[r][0] = start0;
    acc[r][1] = start1;
  }
  multiply_lanes(block, inputs, ahead, acc);
  BARK_UNROLL
  for (int r = 0; r < R; ++r) {
    acc[r][0] <<= 8;
    acc[r][1] <<= 8;
  }
  multiply_lanes(block, inputs + kInt8Group / 4 * kWidth, ahead + 64 * kInt8Group / 4, acc);
}

#else

// Four bytes of a weight row make two pairs of int16: the first and third, and the second and fourth.

struct BatchBlock {
  int32_t lanes[kBatchLanes * kPanelColumns];  // [kBatchLanes, kPanelColumns] pairs
};

inline void lay_block(const int8_t* from, int64_t stride, BatchBlock& to) {
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    turn_bytes(from + half * stride, stride, [&](int64_t k, VecPairs four) {
      const VecS low = (VecS)((VecS)four << 8) >> 8, high = (VecS)four >> 8;
      int32_t* pairs = to.lanes + 2 * k * kPanelColumns + half;
      __builtin_memcpy(pairs, &low, sizeof low);
      __builtin_memcpy(pairs + kPanelColumns, &high, sizeof high);
    });
  }
}

// One group: pairs [kBatchLanes, kWidth].
inline void pack_group(const int16_t (&from)[kWidth][kInt8Group], int32_t* to) {
  for (int64_t k = 0; k < kInt8Group; k += 4) {
    for (int64_t r = 0; r < kWidth; ++r, ++to) {
      const uint16_t* four = reinterpret_cast<const uint16_t*>(from[r] + k);
      to[0] = int32_t(four[0] | uint32_t(four[2]) << 16);
      to[kWidth] = int32_t(four[1] | uint32_t(four[3]) << 16);
    }
    to += kWidth;
  }
}

template <int R>
inline void multiply_group(const BatchBlock& block, const int32_t* inputs, const char* ahead,
                           VecI (&acc)[R][2]) {
  for (int64_t k = 0; k < kBatchLanes; ++k) {
    __builtin_prefetch(ahead + 64 * k, 0, 2);
    const VecS w0 = (VecS)load_pairs(block.lanes + k * kPanelColumns);
    const VecS w1 = (VecS)load_pairs(block.lanes + k * kPanelColumns + kWidth);
    BARK_UNROLL
    for (int r = 0; r < R; ++r) {
      const VecS input = (VecS)(VecPairs{} + inputs[k * kWidth + r]);
      acc[r][0] = add_products(acc[r][0], w0, input);
      acc[r][1] = add_products(acc[r][1], w1, input);
    }
  }
}

#endif

// Rows [rows, depth] of int16 numbers: to[ceil(rows / kWidth), groups, kBatchLanes, kWidth], zeros where
// there is nothing.
inline void pack_batch(const int16_t* from, int64_t stride, int64_t rows, int64_t depth, int32_t* to) {
  for (int64_t first = 0; first < rows; first += kWidth) {
    for (int64_t k = 0; k < depth; k += kInt8Group, to += kBatchLanes * kWidth) {
      int16_t group[kWidth][kInt8Group] = {};
      for (int64_t r = 0; r < min64(kWidth, rows - first); ++r) {
        __builtin_memcpy(group[r], from + (first + r) * stride + k,
                         min64(kInt8Group, depth - k) * sizeof(int16_t));
      }
      pack_group(group, to);
    }
  }
}

// sums[R, kPanelColumns] += one group, while kBatchLanes lines from `ahead` on are fetched. Always an
// addition, also to zeros, as in gemv.h: whether a compiler fuses it must not depend on the tile.
template <int R>
__attribute__((noinline)) void multiply_block(const BatchBlock& block, const int32_t* inputs,
                                              const float* scales, const char* ahead, float* sums) {
  VecI acc[R][2] = {};
  multiply_group(block, inputs, ahead, acc);
  const VecF scale0 = load(scales), scale1 = load(scales + kWidth);
  BARK_UNROLL
  for (int r = 0; r < R; ++r) {
    float* to = sums + r * kPanelColumns;
    store(to, load(to) + __builtin_convertvector(acc[r][0], VecF) * scale0);
    store(to + kWidth, load(to + kWidth) + __builtin_convertvector(acc[r][1], VecF) * scale1);
  }
}

template <int R = kBatchRows>
inline void multiply_rows(int64_t rows, const BatchBlock& block, const int32_t* inputs, const float* scales,
                          const char* ahead, float* sums) {
  if (rows == R) return multiply_block<R>(block, inputs, scales, ahead, sums);
  if constexpr (R > 1) multiply_rows<R - 1>(rows, block, inputs, scales, ahead, sums);
}

// One group of a block times all rows, in tiles of about equal size, the first of which fetches what is
// ahead.
inline void multiply_all(const Activations& a, int64_t depth, int64_t group, const BatchBlock& block,
                         const float* scales, const void* ahead) {
  for (int64_t first = 0; first < a.rows; first += kWidth) {
    const int32_t* inputs = a.packed + (first * int8_groups(depth) + group * kWidth) * kBatchLanes;
    const int64_t rows = min64(kWidth, a.rows - first), tiles = (rows + kBatchRows - 1) / kBatchRows;
    for (int64_t i = 0; i < tiles; ++i, ahead = &block) {
      const int64_t begin = rows * i / tiles, end = rows * (i + 1) / tiles;
      multiply_rows(end - begin, block, inputs + begin, scales, static_cast<const char*>(ahead),
                    a.sums + (first + begin) * kPanelColumns);
    }
  }
}

// Scales of the groups [group, group + kWidth) of a block, those of the last groups with zeros behind them:
// [kWidth, kPanelColumns].
inline void turn_scales(const MatrixView& m, int64_t n, int64_t group, float* to) {
  const int64_t left = int8_groups(m.depth) - group;
  for (int64_t half = 0; half < kPanelColumns; half += kWidth) {
    VecPairs v[kWidth];
    const float* from = m.scales + (n + half) * m.scale_stride + group;
    for (int64_t i = 0; i < kWidth; ++i, from += m.scale_stride) {
      v[i] = (VecPairs)(left >= kWidth ? load(from) : load_first(from, left));
    }
    transpose(v);
    for (int64_t i = 0; i < kWidth; ++i) store(to + i * kPanelColumns + half, (VecF)v[i]);
  }
}

inline void prefetch_scales(const MatrixView& m, int64_t n, int64_t group) {
  const float* scales = m.scales + n * m.scale_stride + group * kPanelColumns;
  for (int64_t i = 0; i < kPanelColumns; i += 16) __builtin_prefetch(scales + i, 0, 2);
}

// y[r, n] for the kPanelColumns columns from n on; `prefetch`: the next block's weights are fetched
// meanwhile.
inline void int8_block(const MatrixView& m, const Activations& a, int64_t n, bool prefetch, Result result) {
  alignas(64) BatchBlock block;
  alignas(64) float scales[kWidth * kPanelColumns];
  const int8_t* weight = static_cast<const int8_t*>(m.weight) + n * m.stride;
  __builtin_memset(a.sums, 0, batch_sums(a.rows) * sizeof(float));
  for (int64_t k = 0, g = 0; k < m.depth; k += kInt8Group, ++g) {
    if (g % kWidth == 0) turn_scales(m, n, g, scales);
    // The same share of the next block as this group is of its own, in order of memory.
    const void* ahead = prefetch ? static_cast<const void*>(weight + kPanelColumns * (m.stride + k)) : &block;
    if (prefetch) prefetch_scales(m, n + kPanelColumns, g);
    if (k + kInt8Group <= m.depth) {
      lay_block(weight + k, m.stride, block);
    } else {
      int8_t rest[kPanelColumns * kInt8Group] = {};
      for (int64_t i = 0; i < kPanelColumns; ++i) {
        __builtin_memcpy(rest + i * kInt8Group, weight + i * m.stride + k, m.depth - k);
      }
      lay_block(rest, kInt8Group, block);
    }
    multiply_all(a, m.depth, g, block, scales + g % kWidth * kPanelColumns, ahead);
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < kPanelColumns; c += kWidth) {
      store(result.y + r * result.stride + n + c, load(a.sums + r * kPanelColumns + c) * a.scales[r]);
    }
  }
}

// Columns from `begin` on, by whole blocks; returns the first that is left.
inline int64_t int8_blocks(const MatrixView& m, const Activations& a, int64_t begin, int64_t end,
                           Result result) {
  for (; begin + kPanelColumns <= end; begin += kPanelColumns) {
    int8_block(m, a, begin, begin + 2 * kPanelColumns <= end, result);
  }
  return begin;
}

}  // namespace bark_accel::BARK_ACCEL_ISA
