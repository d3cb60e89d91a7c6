// The weights of a product that a lane multiplies: which ones, and how they are asked for.
#pragma once

#include "gemv_params.cuh"

namespace bark_accel::cuda {

// kAligned: rows of W start at multiples of 16 bytes, and are whole multiples of them.
template <class Weight, class Shape, bool kAligned>
struct GemvWeights {
  using Params = GemvParams;
  static constexpr int kOutputs = Shape::kOutputs, kBatch = Shape::kBatch;
  static constexpr int kLoad = Shape::kLoad, kChunk = Shape::kChunk;

  // Weights of a lane.
  template <int kCount>
  struct Batch {
    Words words[kOutputs][kCount];
    float scales[kOutputs][kCount];
  };

  struct Rows {
    const Weight* weights[kOutputs];
    const float* scales[kOutputs];
  };

  // The chunks that a warp multiplies: own, own + step, ... of all, tile by tile of x.
  struct Walk {
    int depth, all, in_tile, step, lane, own;

    BARK_DEVICE int first(int begin) const { return begin + ((own - begin) & (step - 1)); }
    BARK_DEVICE int tile_end(int chunk) const { return int(smaller((chunk / in_tile + 1) * in_tile, all)); }
  };

  template <class Context>
  BARK_DEVICE static Walk walk_of(const Context& ctx, const Params& p) {
    const int lane = lane_of(ctx), own = warp_of(ctx) & (p.warps - 1);
    return {int(p.matrix.depth), Shape::chunks(p), Shape::tile(p), p.warps, lane, own};
  }

  // A matrix's rows; beyond the last one, the last one.
  BARK_DEVICE static Rows rows_of(const Params& p, int first) {
    Rows rows;
    BARK_UNROLL
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t output = smaller(first + o, p.outputs - 1);
      rows.weights[o] = static_cast<const Weight*>(p.matrix.weight) + output * p.matrix.stride;
      rows.scales[o] = sizeof(Weight) == 1 ? p.matrix.scales + output * p.matrix.scale_stride : nullptr;
    }
    return rows;
  }

  BARK_DEVICE static Words words_at(const Weight* from, int left) {
    if constexpr (kAligned) return *reinterpret_cast<const Words*>(from);
    Weight some[kLoad] = {};
    BARK_UNROLL
    for (int i = 0; i < kLoad; ++i) {
      if (i < left) some[i] = from[i];
    }
    Words words;
    memcpy(&words, some, sizeof words);
    return words;
  }

  // Of the chunks first, first + step, ... those before `end`; zeros for the others.
  BARK_DEVICE static void load(const Rows& rows, const Walk& walk, int first, int end, Batch<kBatch>& batch) {
    BARK_UNROLL
    for (int j = 0; j < kBatch; ++j) {
      const int chunk = first + j * walk.step, k = chunk * kChunk + walk.lane * kLoad;
      const bool there = chunk < end && k < walk.depth;
      BARK_UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        batch.words[o][j] = there ? words_at(rows.weights[o] + k, walk.depth - k) : Words{};
        if constexpr (sizeof(Weight) == 1) {
          batch.scales[o][j] = there ? rows.scales[o][k / int(kInt8Group)] : 0.0f;
        }
      }
    }
  }
};

}  // namespace bark_accel::cuda
