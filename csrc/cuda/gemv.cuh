// y = W f(x) for a few rows x: [LayerNorm,] product, bias, then store, GELU or add to the residual stream.
// Bound by the reading of W, of which every element is read once, 16 bytes a lane. A warp, or a group of
// warps where the matrix has few outputs, computes kOutputs elements of every row. The first weights are
// asked for before the kernel ahead has ended, each batch of them before the one ahead of it is multiplied.
// Rows lie in shared memory, tile by tile, in the order in which the lanes read them. The order of a sum
// depends on the matrix alone.
#pragma once

#include "gemv_tile.cuh"
#include "gemv_weights.cuh"

namespace bark_accel::cuda {

BARK_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// kAligned: as GemvWeights has it.
template <class Weight, int kRowsOfX, bool kAligned>
struct Gemv : GemvShape<Weight, kRowsOfX> {
  using Params = GemvParams;
  using Shape = GemvShape<Weight, kRowsOfX>;
  using Tile = GemvTile<Shape>;
  using Weights = GemvWeights<Weight, Shape, kAligned>;
  using Walk = typename Weights::Walk;
  template <int kCount>
  using Batch = typename Weights::template Batch<kCount>;
  using Shape::groups_of, Shape::kBatch, Shape::kChunk, Shape::kLoad, Shape::kOutputs, Shape::kRows,
      Shape::kSums;

  // acc += the products of a batch; its chunks lie `step` apart in the tile, from chunk `at` on and before
  // `end`.
  template <int kCount>
  BARK_DEVICE static void multiply(const Batch<kCount>& batch, const float* tile, int stride, int at, int end,
                                   int step, int lane, float (&acc)[kSums]) {
    BARK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      if (at + j * step >= end) break;
      const float* begin = tile + (at + j * step) * kChunk + lane * 4;
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float x[kLoad];
        BARK_UNROLL
        for (int e = 0; e < kLoad; e += 4) {
          const Words four = *reinterpret_cast<const Words*>(begin + r * stride + e * kWarp);
          BARK_UNROLL
          for (int i = 0; i < 4; ++i) x[e + i] = element_of<float>(four, i);
        }
        BARK_UNROLL
        for (int o = 0; o < kOutputs; ++o) {
          float dot = 0;
          BARK_UNROLL
          for (int e = 0; e < kLoad; ++e) dot += to_float(element_of<Weight>(batch.words[o][j], e)) * x[e];
          if constexpr (sizeof(Weight) == 1) dot *= batch.scales[o][j];
          acc[o * kRows + r] += dot;
        }
      }
    }
  }

  BARK_DEVICE static void put(const Params& p, int64_t output, int row, float value) {
    if (output >= p.outputs || row >= p.rows) return;
    if (p.matrix.bias) value += p.matrix.bias[output];
    float* y = p.y + row * p.outputs + output;
    if (p.finish == Finish::kGelu) value = gelu(value);
    if (p.finish == Finish::kAdd) value += *y;
    *y = value;
  }

  // Adds what the warps of a group have, in their order.
  template <class Context>
  BARK_DEVICE static void finish(const Context& ctx, const Params& p, float (&acc)[kSums], float* scratch) {
    constexpr int kLanes = kWarp / kSums;  // that hold the same sum
    const float mine = warp_sums<kSums>(ctx, acc);
    if (lane_of(ctx) % kLanes == 0) scratch[warp_of(ctx) * kSums + lane_of(ctx) / kLanes] = mine;
    ctx.barrier();
    const int groups = groups_of(p.warps), group = ctx.thread() / kSums, which = ctx.thread() % kSums;
    if (group >= groups) return;
    float sum = 0;
    for (int w = 0; w < p.warps; ++w) sum += scratch[(group * p.warps + w) * kSums + which];
    put(p, (ctx.block() * groups + group) * kOutputs + which / kRows, which % kRows, sum);
  }

  // Weights come straight into registers, a batch ahead.
  struct Registers {
    typename Weights::Rows rows;
    Batch<kBatch> now, ahead;

    template <class Context>
    BARK_DEVICE void begin(const Context& ctx, const Params& p, const Walk& walk) {
      rows = Weights::rows_of(p, Shape::first_output(int(ctx.block()), warp_of(ctx), p.warps));
      Weights::load(rows, walk, walk.own, walk.tile_end(walk.own), now);
    }

    // acc += the products of the chunks [begin, end), whose x is in `x`.
    BARK_DEVICE void multiply_tile(const Walk& walk, int begin, int end, const float* x,
                                   float (&acc)[kSums]) {
      for (int c = walk.first(begin); c < end; c += walk.step * kBatch) {
        const int same = c + walk.step * kBatch, next = same < end ? same : walk.first(end);
        Weights::load(rows, walk, next, walk.tile_end(next), ahead);
        multiply(now, x, walk.in_tile * kChunk, c - begin, end - begin, walk.step, walk.lane, acc);
        now = ahead;
      }
    }
  };

  // A block's outputs. `source` has the weights, and asks for them early; `fresh`: x is not in shared memory
  // yet.
  template <class Context, class Source>
  BARK_DEVICE static void run_from(const Context& ctx, const Params& p, Source& source, bool fresh) {
    const Walk walk = Weights::walk_of(ctx, p);
    const int stride = walk.in_tile * kChunk;
    float* x = reinterpret_cast<float*>(ctx.shared());
    float* stats = x + kRows * stride;
    float* scratch = stats + 2 * kRows;
    // In this order: what comes next asks for its weights as soon as it is released.
    if (p.waits_first) ctx.wait_for_previous();
    ctx.release_next();
    source.begin(ctx, p, walk);
    ctx.wait_for_previous();
    if (p.norm_weight && fresh) Tile::normalise_any(ctx, p, stats, scratch);
    float acc[kSums] = {};
    for (int begin = 0; begin < walk.all; begin += walk.in_tile) {
      const int end = walk.tile_end(begin);
      if (begin > 0) ctx.barrier();
      if (fresh || walk.in_tile < walk.all) {
        Tile::fill_any(ctx, p, begin * kChunk, stride, stats, x);
        ctx.barrier();
      }
      source.multiply_tile(walk, begin, end, x, acc);
    }
    finish(ctx, p, acc, scratch);
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    Registers weights;
    run_from(ctx, p, weights, true);
  }
};

template <class Weight, class Executor>
void launch_gemv_of(Executor& executor, const GemvParams& p, bool aligned) {
  if (!aligned) return executor.template launch<Gemv<Weight, 4, false>>(p);
  if (p.rows == 1) return executor.template launch<Gemv<Weight, 1, true>>(p);
  if (p.rows == 2) return executor.template launch<Gemv<Weight, 2, true>>(p);
  if (p.rows <= 4) return executor.template launch<Gemv<Weight, 4, true>>(p);
  if (p.rows <= 8) return executor.template launch<Gemv<Weight, 8, true>>(p);
  executor.template launch<Gemv<Weight, 16, true>>(p);
}

// Any number of rows, kMostRows at a time.
template <class Executor>
void launch_gemv(Executor& executor, GemvParams p) {
  const MatrixView& m = p.matrix;
  const bool aligned = gemv_aligned(m);
  const int64_t rows = p.rows;
  p.warps = warps_of_output(p);
  p.first_row = 0;
  while (p.first_row < rows) {
    p.rows = smaller(aligned ? kMostRows : 4, rows - p.first_row);
    if (m.dtype == DType::kInt8) {
      launch_gemv_of<int8_t>(executor, p, aligned);
    } else {
      with_float_type(m.dtype, [&](auto zero) { launch_gemv_of<decltype(zero)>(executor, p, aligned); });
    }
    p.first_row += p.rows;
    if (p.x) p.x += p.rows * m.depth;
    p.y += p.rows * p.outputs;
  }
}

}  // namespace bark_accel::cuda