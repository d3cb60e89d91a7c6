// y = W f(x) for a few rows x: [LayerNorm,] product, bias, then store, GELU or add to the residual stream.
// Bound by the reading of W, of which every element is read once, 16 bytes a lane. A warp computes kOutputs
// elements of every row; the rows lie in shared memory, tile by tile, in the order in which the lanes read
// them.
#pragma once

#include "numbers.cuh"

namespace bark_accel::cuda {

enum class Finish : int32_t { kStore, kGelu, kAdd };

struct GemvParams {
  MatrixView matrix;  // [outputs, depth]
  int64_t outputs;
  bool aligned;                          // weights can be read 16 bytes at a time
  const float* x;                        // [rows, depth] contiguous
  int64_t rows;                          // at most the kernel's kRows
  const float *norm_weight, *norm_bias;  // [depth] or null
  float eps;
  float* y;  // [rows, outputs] contiguous
  Finish finish;
};

constexpr int64_t kMostRows = 16;  // of one launch
constexpr int64_t kTileFloats = 8192;

// Sums over the warp of kCount (a power of two, at most 32) values; a lane returns the one of `lane * kCount
// / 32`. Each step halves the values that a lane carries: kCount - 1 shuffles for all of them, and 5 at
// least.
template <int kCount, int kMask = kWarp / 2, class Context, int kSize>
BARK_DEVICE float warp_sums(const Context& ctx, float (&values)[kSize]) {
  if constexpr (kCount == 1) {
    return warp_reduce(ctx, values[0], Sum{}, 2 * kMask);
  } else {
    const bool upper = (lane_of(ctx) & kMask) != 0;
    BARK_UNROLL
    for (int i = 0; i < kCount / 2; ++i) {
      const float low = values[i], high = values[i + kCount / 2];
      values[i] = (upper ? high : low) + ctx.shuffle(upper ? low : high, lane_of(ctx) ^ kMask);
    }
    return warp_sums<kCount / 2, kMask / 2>(ctx, values);
  }
}

BARK_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

template <class Weight, int kRows>
struct Gemv {
  using Params = GemvParams;
  static constexpr int kOutputs = kRows > 1 ? 2 : 1;  // of one warp
  static constexpr int kThreads = 256;
  static constexpr int kLoad = kVector<Weight>;
  static constexpr int kChunk = kWarp * kLoad;  // elements of one load of a warp
  static constexpr int kTile = kTileFloats / kRows / kChunk * kChunk;
  static_assert(kTile > 0 && kOutputs * kRows <= kWarp);

  static int64_t tile(const Params& p) { return smaller(kTile, ceil_div(p.matrix.depth, kChunk) * kChunk); }

  static Grid grid(const Params& p) {
    return {ceil_div(p.outputs, kOutputs * kThreads / kWarp), kThreads,
            int64_t(sizeof(float)) * (kRows * tile(p) + 2 * kRows)};
  }

  // Where element k of a tile's row lies: the four-element pieces of a lane apart, so that neighbouring lanes
  // read neighbouring pieces.
  BARK_DEVICE static int64_t place(int64_t k) {
    const int64_t lane = k % kChunk / kLoad, piece = k % kLoad / 4;
    return k / kChunk * kChunk + piece * (4 * kWarp) + lane * 4 + k % 4;
  }

  // Mean and inverse deviation of every row.
  template <class Context>
  BARK_DEVICE static void normalise(const Context& ctx, const Params& p, float* stats) {
    const int64_t depth = p.matrix.depth;
    for (int64_t r = warp_of(ctx); r < p.rows; r += kThreads / kWarp) {
      const float* x = p.x + r * depth;
      float sum = 0;
      for (int64_t k = lane_of(ctx); k < depth; k += kWarp) sum += x[k];
      const float mean = warp_reduce(ctx, sum, Sum{}) / float(depth);
      float squares = 0;
      for (int64_t k = lane_of(ctx); k < depth; k += kWarp) squares += (x[k] - mean) * (x[k] - mean);
      const float variance = warp_reduce(ctx, squares, Sum{}) / float(depth);
      if (lane_of(ctx) == 0) {
        stats[2 * r] = mean;
        stats[2 * r + 1] = 1.0f / sqrtf(variance + p.eps);
      }
    }
    ctx.barrier();
  }

  template <class Context>
  BARK_DEVICE static void fill(const Context& ctx, const Params& p, int64_t begin, int64_t size,
                               const float* stats, float* tile) {
    const int64_t depth = p.matrix.depth;
    for (int64_t i = ctx.thread(); i < size; i += kThreads) {
      const int64_t k = begin + i, at = place(i);
      const bool inside = k < depth;
      const float scale = p.norm_weight && inside ? p.norm_weight[k] : 1.0f;
      const float shift = p.norm_bias && inside ? p.norm_bias[k] : 0.0f;
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float x = inside && r < p.rows ? p.x[r * depth + k] : 0.0f;
        if (p.norm_weight && r < p.rows) x = (x - stats[2 * r]) * stats[2 * r + 1] * scale + shift;
        tile[r * size + at] = inside ? x : 0.0f;
      }
    }
  }

  // acc += the products of this lane's share of a tile
  BARK_DEVICE static void multiply(const Params& p, const int64_t (&outputs)[kOutputs], int64_t begin,
                                   int64_t size, int lane, const float* tile,
                                   float (&acc)[kOutputs * kRows]) {
    const MatrixView& m = p.matrix;
    for (int64_t i = 0; i < size; i += kChunk) {
      const int64_t k = begin + i + lane * kLoad;
      float w[kOutputs][kLoad];
      BARK_UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        load_vector(static_cast<const Weight*>(m.weight) + outputs[o] * m.stride + k, m.depth - k, p.aligned,
                    w[o]);
      }
      float scale[kOutputs];
      if constexpr (sizeof(Weight) == 1) {
        BARK_UNROLL
        for (int o = 0; o < kOutputs; ++o) {
          scale[o] = k < m.depth ? m.scales[outputs[o] * m.scale_stride + k / kInt8Group] : 0.0f;
        }
      }
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float x[kLoad];
        BARK_UNROLL
        for (int e = 0; e < kLoad; e += 4) {
          const Words four = *reinterpret_cast<const Words*>(tile + r * size + i + e * kWarp + lane * 4);
          BARK_UNROLL
          for (int j = 0; j < 4; ++j) x[e + j] = element_of<float>(four, j);
        }
        BARK_UNROLL
        for (int o = 0; o < kOutputs; ++o) {
          float dot = 0;
          BARK_UNROLL
          for (int e = 0; e < kLoad; ++e) dot += w[o][e] * x[e];
          if constexpr (sizeof(Weight) == 1) dot *= scale[o];
          acc[o * kRows + r] += dot;
        }
      }
    }
  }

  BARK_DEVICE static void put(const Params& p, int64_t output, int64_t row, float value) {
    if (p.matrix.bias) value += p.matrix.bias[output];
    float* y = p.y + row * p.outputs + output;
    if (p.finish == Finish::kGelu) value = gelu(value);
    if (p.finish == Finish::kAdd) value += *y;
    *y = value;
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    const int64_t depth = p.matrix.depth;
    const int64_t size = smaller(kTile, ceil_div(depth, kChunk) * kChunk);
    float* tile = reinterpret_cast<float*>(ctx.shared());
    float* stats = tile + kRows * size;
    const int64_t first = (ctx.block() * (kThreads / kWarp) + warp_of(ctx)) * kOutputs;
    int64_t outputs[kOutputs];
    BARK_UNROLL
    for (int o = 0; o < kOutputs; ++o) outputs[o] = smaller(first + o, p.outputs - 1);
    float acc[kOutputs * kRows] = {};
    ctx.release_next();
    ctx.wait_for_previous();
    if (p.norm_weight) normalise(ctx, p, stats);
    for (int64_t begin = 0; begin < depth; begin += size) {
      if (begin > 0) ctx.barrier();
      fill(ctx, p, begin, size, stats, tile);
      ctx.barrier();
      multiply(p, outputs, begin, size, lane_of(ctx), tile, acc);
    }
    const float sum = warp_sums<kOutputs * kRows>(ctx, acc);
    constexpr int kLanes = kWarp / (kOutputs * kRows);  // that hold the same sum
    const int which = lane_of(ctx) / kLanes, row = which % kRows;
    const int64_t output = first + which / kRows;
    if (lane_of(ctx) % kLanes == 0 && output < p.outputs && row < p.rows) put(p, output, row, sum);
  }
};

template <class Weight, class Executor>
void launch_gemv_of(Executor& executor, const GemvParams& p) {
  if (p.rows == 1) return executor.template launch<Gemv<Weight, 1>>(p);
  if (p.rows == 2) return executor.template launch<Gemv<Weight, 2>>(p);
  if (p.rows <= 4) return executor.template launch<Gemv<Weight, 4>>(p);
  if (p.rows <= 8) return executor.template launch<Gemv<Weight, 8>>(p);
  executor.template launch<Gemv<Weight, 16>>(p);
}

// Any number of rows, kMostRows at a time.
template <class Executor>
void launch_gemv(Executor& executor, GemvParams p) {
  const MatrixView& m = p.matrix;
  const int64_t rows = p.rows;
  p.aligned = is_aligned(m.weight, m.stride * size_of(m.dtype));
  for (int64_t first = 0; first < rows; first += kMostRows) {
    p.rows = smaller(kMostRows, rows - first);
    if (m.dtype == DType::kInt8) {
      launch_gemv_of<int8_t>(executor, p);
    } else {
      with_float_type(m.dtype, [&](auto zero) { launch_gemv_of<decltype(zero)>(executor, p); });
    }
    p.x += p.rows * m.depth;
    p.y += p.rows * p.outputs;
  }
}

}  // namespace bark_accel::cuda
