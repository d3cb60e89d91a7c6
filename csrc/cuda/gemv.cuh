// y = W f(x) for a few rows x: [LayerNorm,] product, bias, then store, GELU or add to the residual stream.
// Bound by the reading of W, of which every element is read once, 16 bytes a lane. A warp, or a group of
// warps where the matrix has few outputs, computes kOutputs elements of every row. The first weights are
// asked for before the kernel ahead has ended, each batch of them before the one ahead of it is multiplied.
// Rows lie in shared memory, tile by tile, in the order in which the lanes read them. The order of a sum
// depends on the matrix alone.
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

// kAligned: rows of W start at multiples of 16 bytes, and are whole multiples of them.
template <class Weight, int kRows, bool kAligned>
struct Gemv {
  using Params = GemvParams;
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
  BARK_BOTH static int chunks(const Params& p) { return chunks(int(p.matrix.depth)); }
  // Groups of warps in a block: `warps` is 1, 2 or 4.
  BARK_BOTH static int groups_of(int warps) { return kWarps >> (warps / 2); }
  BARK_BOTH static int tile(const Params& p) { return int(smaller(kTile, chunks(p))); }

  static Grid grid(const Params& p) {
    return {ceil_div(p.outputs, kOutputs * kWarps / p.warps), kThreads,
            int64_t(sizeof(float)) * (kRows * tile(p) * kChunk + 2 * kRows + kWarps * kSums)};
  }

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
    return {int(p.matrix.depth), chunks(p), tile(p), p.warps, lane, own};
  }

  // Of a warp, in a block of a product's.
  BARK_DEVICE static int first_output(int block, int warp, int warps) {
    return (block * groups_of(warps) + (warp >> (warps / 2))) * kOutputs;
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
    Rows rows;
    Batch<kBatch> now, ahead;

    template <class Context>
    BARK_DEVICE void begin(const Context& ctx, const Params& p, const Walk& walk) {
      rows = rows_of(p, first_output(int(ctx.block()), warp_of(ctx), p.warps));
      load(rows, walk, walk.own, walk.tile_end(walk.own), now);
    }

    // acc += the products of the chunks [begin, end), whose x is in `x`.
    BARK_DEVICE void multiply_tile(const Walk& walk, int begin, int end, const float* x,
                                   float (&acc)[kSums]) {
      for (int c = walk.first(begin); c < end; c += walk.step * kBatch) {
        const int same = c + walk.step * kBatch, next = same < end ? same : walk.first(end);
        load(rows, walk, next, walk.tile_end(next), ahead);
        multiply(now, x, walk.in_tile * kChunk, c - begin, end - begin, walk.step, walk.lane, acc);
        now = ahead;
      }
    }
  };

  // A block's outputs. `source` has the weights, and asks for them early; `fresh`: x is not in shared memory
  // yet.
  template <class Context, class Source>
  BARK_DEVICE static void run_from(const Context& ctx, const Params& p, Source& source, bool fresh) {
    const Walk walk = walk_of(ctx, p);
    const int stride = walk.in_tile * kChunk;
    float* x = reinterpret_cast<float*>(ctx.shared());
    float* stats = x + kRows * stride;
    float* scratch = stats + 2 * kRows;
    // In this order: what comes next asks for its weights as soon as it is released.
    if (p.waits_first) ctx.wait_for_previous();
    ctx.release_next();
    source.begin(ctx, p, walk);
    ctx.wait_for_previous();
    if (p.norm_weight && fresh) normalise_any(ctx, p, stats, scratch);
    float acc[kSums] = {};
    for (int begin = 0; begin < walk.all; begin += walk.in_tile) {
      const int end = walk.tile_end(begin);
      if (begin > 0) ctx.barrier();
      if (fresh || walk.in_tile < walk.all) {
        fill_any(ctx, p, begin * kChunk, stride, stats, x);
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
