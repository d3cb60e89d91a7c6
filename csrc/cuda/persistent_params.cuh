// What a launch of persistent_step.cuh is told: a step, its layers, and what is drawn after it.
#pragma once

#include "decode_step.cuh"
#include "fused_sample.cuh"

namespace bark_accel::cuda {

constexpr int64_t kMostLayers = 32;
constexpr int64_t kMostPersistentRows = 4;

// Blocks and warps of a product, which are the same in every layer: divisions that the device is spared.
struct ProductPlan {
  int32_t blocks, warps;
};

// Scores of some ids, and the token that is drawn from them.
struct Draw {
  MatrixView head;
  int64_t head_rows;
  FusedSampleParams sample;  // moves on what the step reads
};

// The tokens of a launch: each a step of one new token a row, and a draw.
struct TokenRun {
  int32_t ways;          // how many of `draws` take turns; 0: one step, which draws nothing
  Draw draws[2];         // of one step, the first has the head
  const int64_t* limit;  // on the device: tokens at most
  int64_t stop = -1;     // a row that has it has ended, and keeps it; -1: none has
};

struct PersistentStepParams {
  DecodeStepParams step;  // its layers and caches are those below
  TokenRun run;
  DecodeScratch scratch;
  DecodeLayer layers[kMostLayers];
  CacheView caches[kMostLayers];
  ProductPlan plans[kProducts - 1];
  ProductPlan head_plans[2];  // of the draws' heads
  int32_t attention_blocks;
  int32_t most_blocks;  // of any product
  int32_t part_bytes;   // of shared memory: of each part of a block, in attention
  int32_t shared_bytes;
  int32_t ring_begin, ring_depth;  // of weight_ring.cuh in shared memory, where there is one; bytes, batches
  int32_t blocks;
  uint32_t* arrived;  // blocks, after each part of a step; 0 before the launch
};
static_assert(sizeof(PersistentStepParams) < 32 * 1024, "more than a launch can pass");

inline DecodeStepParams with_head(DecodeStepParams step, const Draw& draw) {
  step.decode.head = draw.head;
  step.decode.head_rows = draw.head_rows;
  return step;
}

inline bool is_persistent_matrix(const MatrixView& m, DType dtype) {
  return m.dtype == dtype && gemv_aligned(m);
}

// Whether one kernel can do it: up to four rows, matrices of one dtype in lines of 16 bytes, and caches of
// that dtype, or of float16 beside int8.
inline bool is_persistent(const DecodeStepParams& step) {
  const DecodeParams& p = step.decode;
  const DType dtype = p.head.dtype;
  if (p.batch * p.tokens > kMostPersistentRows || p.layers_count > kMostLayers || p.layers_count == 0)
    return false;
  if (p.cache_dtype != (dtype == DType::kInt8 ? DType::kFloat16 : dtype)) return false;
  bool same = is_persistent_matrix(p.head, dtype);
  for (int64_t i = 0; i < p.layers_count; ++i) {
    const DecodeLayer& layer = p.layers[i];
    for (const MatrixView* m : {&layer.qkv, &layer.attention_out, &layer.mlp_in, &layer.mlp_out}) {
      same = same && is_persistent_matrix(*m, dtype);
    }
  }
  return same;
}

// Whether one kernel can do the steps of a run, whose head `step` does not have yet, and its draws.
inline bool is_persistent(const DecodeStepParams& step, const TokenRun& run) {
  bool all = step.decode.tokens == 1;
  for (int i = 0; i < run.ways; ++i) {
    all = all && is_persistent(with_head(step, run.draws[i]));
  }
  return all;
}

// Most shared memory of what would be launched.
struct LargestShared {
  int64_t bytes = 0;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    bytes = larger(bytes, Kernel::grid(params).shared_bytes);
  }
};

// The most batches that a ring can have in as many bytes, of those that there can be; 0: none.
inline int32_t ring_depth(int64_t bytes, int64_t batch_bytes) {
  int i = 0;
  while (ring_size(i) > 0 && ring_size(i) * batch_bytes > bytes) ++i;
  return ring_size(i);
}

// `blocks` and the ring are still missing.
template <class Kernel>
PersistentStepParams persistent_params(const DecodeStepParams& step, const TokenRun& run) {
  PersistentStepParams p{};
  p.step = step;
  p.run = run;
  p.scratch = decode_scratch(step);
  p.arrived = p.scratch.arrived;
  for (int64_t i = 0; i < step.decode.layers_count; ++i) {
    p.layers[i] = step.decode.layers[i];
    p.caches[i] = step.decode.caches[i];
  }
  LargestShared largest;
  const auto planned = [&](const DecodeStepParams& of, Product which) -> ProductPlan {
    GemvParams g = product_of(of, p.scratch, 0, which);
    g.warps = warps_of_output(g);
    largest.launch<typename Kernel::Gemv>(g);
    const auto blocks = int32_t(Kernel::Gemv::grid(g).blocks);
    p.most_blocks = int32_t(larger(p.most_blocks, blocks));
    return {blocks, g.warps};
  };
  if (run.ways == 0) {
    p.run.draws[0].head = step.decode.head;
    p.run.draws[0].head_rows = step.decode.head_rows;
  }
  for (int i = 0; i < int(Product::kHead); ++i) p.plans[i] = planned(step, Product(i));
  for (int i = 0; i < (run.ways == 2 ? 2 : 1); ++i) {
    p.head_plans[i] = planned(with_head(step, p.run.draws[i]), Product::kHead);
    if (run.ways) largest.launch<typename Kernel::Sampler>(run.draws[i].sample);
  }
  const Grid attention = Kernel::Attention::grid(decode_attention(step, p.scratch, 0));
  p.attention_blocks = int32_t(attention.blocks);
  p.part_bytes = int32_t(ceil_div(attention.shared_bytes, 16) * 16);
  p.shared_bytes = int32_t(larger(largest.bytes, Kernel::kParts * p.part_bytes));
  return p;
}

}  // namespace bark_accel::cuda
