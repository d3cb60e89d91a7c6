// The rows x of a product in shared memory, normalised where it is asked for: tile by tile, in the order in
// which the lanes read them.
#pragma once

#include "gemv_params.cuh"

namespace bark_accel::cuda {

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

template <class Shape>
struct GemvTile {
  using Params = GemvParams;
  static constexpr int kRows = Shape::kRows, kThreads = Shape::kThreads, kWarps = Shape::kWarps;
  static constexpr int kLoad = Shape::kLoad, kChunk = Shape::kChunk;

  // Where element k of a tile's row lies: the four-element pieces of a lane apart, so that neighbouring lanes
  // read neighbouring pieces.
  BARK_DEVICE static int place(int k) {
    const int lane = k % kChunk / kLoad, piece = k % kLoad / 4;
    return k / kChunk * kChunk + piece * (4 * kWarp) + lane * 4 + k % 4;
  }

  template <Input kInput>
  BARK_DEVICE static float input(const Params& p, int row, int k) {
    if constexpr (kInput == Input::kEmbedding) return embedded(p.embedding, int(p.first_row) + row, k);
    const int depth = int(p.matrix.depth);
    if constexpr (kInput == Input::kRows) return p.x[row * depth + k];
    const int size = p.shares.head_dim;
    return combined(p.shares, (p.first_row + row) * (depth / size) + k / size, k % size);
  }

  // The block's sums of a value for each row, in every thread's `values`.
  template <class Context>
  BARK_DEVICE static void sum_rows(const Context& ctx, float (&values)[kRows], float* scratch) {
    const float mine = warp_sums<kRows>(ctx, values);
    if (lane_of(ctx) % (kWarp / kRows) == 0) {
      scratch[warp_of(ctx) * kRows + lane_of(ctx) / (kWarp / kRows)] = mine;
    }
    ctx.barrier();
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      values[r] = 0;
      for (int w = 0; w < kWarps; ++w) values[r] += scratch[w * kRows + r];
    }
    ctx.barrier();
  }

  // Mean and inverse deviation of every row.
  template <Input kInput, class Context>
  BARK_DEVICE static void normalise(const Context& ctx, const Params& p, float* stats, float* scratch) {
    const int depth = int(p.matrix.depth);
    float means[kRows] = {}, squares[kRows] = {};
    for (int k = ctx.thread(); k < depth; k += kThreads) {
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) means[r] += r < p.rows ? input<kInput>(p, r, k) : 0.0f;
    }
    sum_rows(ctx, means, scratch);
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) means[r] /= float(depth);
    for (int k = ctx.thread(); k < depth; k += kThreads) {
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float off = r < p.rows ? input<kInput>(p, r, k) - means[r] : 0.0f;
        squares[r] += off * off;
      }
    }
    sum_rows(ctx, squares, scratch);
    BARK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (ctx.thread() != r) continue;
      stats[2 * r] = means[r];
      stats[2 * r + 1] = 1.0f / sqrtf(squares[r] / float(depth) + p.eps);
    }
    ctx.barrier();
  }

  // Elements [begin, begin + size) of every row.
  template <Input kInput, class Context>
  BARK_DEVICE static void fill(const Context& ctx, const Params& p, int begin, int size, const float* stats,
                               float* tile) {
    const int depth = int(p.matrix.depth);
    for (int i = ctx.thread(); i < size; i += kThreads) {
      const int k = begin + i, at = place(i);
      const bool inside = k < depth;
      const float scale = p.norm_weight && inside ? p.norm_weight[k] : 1.0f;
      const float shift = p.norm_bias && inside ? p.norm_bias[k] : 0.0f;
      BARK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const bool there = inside && r < p.rows;
        float x = there ? input<kInput>(p, r, k) : 0.0f;
        if (kInput == Input::kEmbedding && there && ctx.block() == 0) {
          p.embedding.hidden[(p.first_row + r) * depth + k] = x;
        }
        if (p.norm_weight && there) x = (x - stats[2 * r]) * stats[2 * r + 1] * scale + shift;
        tile[r * size + at] = x;
      }
    }
  }

  template <class Context>
  BARK_DEVICE static void normalise_any(const Context& ctx, const Params& p, float* stats, float* scratch) {
    if (p.input == Input::kEmbedding) return normalise<Input::kEmbedding>(ctx, p, stats, scratch);
    normalise<Input::kRows>(ctx, p, stats, scratch);
  }

  template <class Context>
  BARK_DEVICE static void fill_any(const Context& ctx, const Params& p, int begin, int size,
                                   const float* stats, float* tile) {
    if (p.input == Input::kEmbedding) return fill<Input::kEmbedding>(ctx, p, begin, size, stats, tile);
    if (p.input == Input::kShares) return fill<Input::kShares>(ctx, p, begin, size, stats, tile);
    fill<Input::kRows>(ctx, p, begin, size, stats, tile);
  }
};

}  // namespace bark_accel::cuda
