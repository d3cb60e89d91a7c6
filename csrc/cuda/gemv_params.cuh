// What a product of gemv.cuh is told, and how its work is cut: into blocks, warps and loads of a lane.
#pragma once

#include "gemv_input.cuh"

namespace bark_accel::cuda {

enum class Finish : int32_t { kStore, kGelu, kAdd };

struct GemvParams {
  MatrixView matrix;  // [outputs, depth]
  int64_t outputs;
  Input input;
  const float* x;  // [rows, depth] contiguous
  EmbeddingInput embedding;
  SharesInput shares;
  int64_t first_row;                     // of the inputs; x and y start there
  int64_t rows;                          // at most the kernel's kRows
  const float *norm_weight, *norm_bias;  // [depth] or null
  float eps;
  float* y;  // [rows, outputs] contiguous
  Finish finish;
  int32_t warps;     // of an output: 1, 2 or 4
  bool waits_first;  // weights are asked for after the kernels before, which may have written them
};

constexpr int64_t kMostRows = 16;  // of one launch
constexpr int64_t kTileFloats = 8192;
constexpr int64_t kWantedProducts = 128;  // blocks, about one for each multiprocessor of a large GPU

inline bool gemv_aligned(const MatrixView& m) {
  const int64_t size = size_of(m.dtype);
  return is_aligned(m.weight, m.stride * size) && m.depth * size % 16 == 0;
}

// So many that there are blocks for a large GPU, where rows are long enough to be cut. No matter how many
// rows x has: they must not change a sum.
inline int32_t warps_of_output(const GemvParams& p) {
  const int64_t chunks = ceil_div(p.matrix.depth * size_of(p.matrix.dtype), 16 * kWarp);
  int32_t warps = 1;
  while (warps < 4 && ceil_div(p.outputs * warps, 16) < kWantedProducts && chunks >= 2 * warps) warps *= 2;
  return warps;
}

template <class Weight, int kRowsOfX>
struct GemvShape {
  static constexpr int kRows = kRowsOfX;
  static constexpr int kOutputs = 2;  // of one group of warps
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kLoad = kVector<Weight>;
  static constexpr int kChunk = kWarp * kLoad;  // elements of one load of a warp
  // Loads of an output that a lane has in flight; of int8 two are a row of a thousand.
  static constexpr int kBatch = kRows > 4 || sizeof(Weight) == 1 ? 2 : 4;
  static constexpr int kTile = int(kTileFloats / kRows / kChunk);  // chunks
  static constexpr int kSums = kOutputs * kRows;
  static_assert(kTile > 0 && kSums <= kWarp);

  BARK_BOTH static int chunks(int depth) { return (depth + kChunk - 1) / kChunk; }
  BARK_BOTH static int chunks(const GemvParams& p) { return chunks(int(p.matrix.depth)); }
  // Groups of warps in a block: `warps` is 1, 2 or 4.
  BARK_BOTH static int groups_of(int warps) { return kWarps >> (warps / 2); }
  BARK_BOTH static int tile(const GemvParams& p) { return int(smaller(kTile, chunks(p))); }

  static Grid grid(const GemvParams& p) {
    return {ceil_div(p.outputs, kOutputs * kWarps / p.warps), kThreads,
            int64_t(sizeof(float)) * (kRows * tile(p) * kChunk + 2 * kRows + kWarps * kSums)};
  }

  // Of a warp, in a block of a product's.
  BARK_DEVICE static int first_output(int block, int warp, int warps) {
    return (block * groups_of(warps) + (warp >> (warps / 2))) * kOutputs;
  }
};

}  // namespace bark_accel::cuda
