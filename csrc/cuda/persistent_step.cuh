// A whole decode step as one kernel, whose blocks all run at once and wait for each other between the parts
// that decode_step.cuh launches one by one. The bodies are the same, and so is every sum: a result does not
// depend on the number of blocks, nor on which of the two ways is taken. Gained is the time between kernels;
// the first weights of a product are on their way while the block waits for the others.
#pragma once

#include "decode_step.cuh"

namespace bark_accel::cuda {

constexpr int64_t kMostLayers = 32;
constexpr int64_t kMostPersistentRows = 4;

// Blocks and warps of a product, which are the same in every layer: divisions that the device is spared.
struct ProductPlan {
  int32_t blocks, warps;
};

struct PersistentStepParams {
  DecodeStepParams step;  // its layers and caches are those below
  DecodeScratch scratch;
  DecodeLayer layers[kMostLayers];
  CacheView caches[kMostLayers];
  ProductPlan plans[kProducts];
  int32_t attention_blocks;
  int32_t part_bytes;  // of shared memory: of each part of a block, in attention
  int32_t shared_bytes;
  int32_t blocks;
  uint32_t* arrived;  // blocks, after each part of the step; 0 before the launch
};
static_assert(sizeof(PersistentStepParams) < 32 * 1024, "more than a launch can pass");

// A block of one part of the step. Waiting for what came before is waiting for all blocks.
template <class Context>
struct PhaseContext : Context {
  int64_t at;
  const uint32_t* arrived;
  uint32_t expected;
  mutable bool waited;

  BARK_DEVICE int64_t block() const { return at; }
  BARK_DEVICE void release_next() const {}
  BARK_DEVICE void wait_for_previous() const {
    if (waited) return;
    if (Context::thread() == 0) Context::wait_for(arrived, expected);
    Context::barrier();
    waited = true;
  }
};

// Some of a block's threads, as a smaller block that never waits for others.
template <class Context, int kThreads>
struct PartContext : Context {
  int64_t at;
  int part, bytes;

  BARK_DEVICE int thread() const { return Context::thread() % kThreads; }
  BARK_DEVICE int threads() const { return kThreads; }
  BARK_DEVICE int64_t block() const { return at; }
  BARK_DEVICE char* shared() const { return Context::shared() + part * bytes; }
  BARK_DEVICE void wait_for_previous() const {}
  BARK_DEVICE void release_next() const {}
#ifdef __CUDACC__
  BARK_DEVICE void barrier() const { Context::part_barrier(part, kThreads); }
#else
  void barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    Context::part_barrier(part, kThreads, file, line);
  }
#endif
};

template <class Weight, class Cache, int kRows>
struct PersistentStep {
  using Params = PersistentStepParams;
  using Gemv = cuda::Gemv<Weight, kRows, true>;
  using Attention = AttentionSplit<float, Cache>;
  static constexpr int kThreads = Gemv::kThreads;
  static constexpr int kParts = kThreads / Attention::kThreads;
  static constexpr int kBlocksPerMultiprocessor = 2;

  static Grid grid(const Params& p) { return {p.blocks, kThreads, p.shared_bytes}; }

  // One part of the step after the other, by this block.
  template <class Context>
  struct Turns {
    const Context& ctx;
    const Params& p;
    uint32_t phase = 0;

    BARK_DEVICE PhaseContext<Context> begin() const {
      return {ctx, ctx.block(), p.arrived, phase * uint32_t(p.blocks), false};
    }

    BARK_DEVICE void gemv(GemvParams g, ProductPlan plan) {
      PhaseContext<Context> inner = begin();
      g.warps = plan.warps;
      for (; inner.at < plan.blocks; inner.at += p.blocks) {
        if (inner.waited) ctx.barrier();  // shared memory is free again
        Gemv::run(inner, g);
      }
      end(inner);
    }

    BARK_DEVICE void attention(const AttentionSplitParams& a) {
      const PhaseContext<Context> inner = begin();
      inner.wait_for_previous();
      const int part = ctx.thread() / Attention::kThreads;
      // The second half of a block works where there is more than a block's worth for everybody.
      PartContext<Context, Attention::kThreads> half{ctx, ctx.block() + part * p.blocks, part, p.part_bytes};
      // Once more needs no barrier between: all that the first of its own does not guard is the query, which
      // nobody reads any more.
      for (; half.at < p.attention_blocks; half.at += kParts * p.blocks) Attention::run(half, a);
      end(inner);
    }

    // Also for blocks that had nothing to do: nobody arrives twice before all have arrived once.
    BARK_DEVICE void end(const PhaseContext<Context>& inner) {
      inner.wait_for_previous();
      ctx.barrier();
      if (ctx.thread() == 0) ctx.arrive(p.arrived);
      ++phase;
    }
  };

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    DecodeStepParams step = p.step;
    step.decode.layers = p.layers;
    step.decode.caches = p.caches;
    ctx.wait_for_previous();
    Turns<Context> turns{ctx, p};
    const int products = 4 * int(step.decode.layers_count) + 1;
    for (int i = 0; i < products; ++i) {
      const Product which = i + 1 == products ? Product::kHead : Product(i % 4);
      turns.gemv(product_of(step, p.scratch, i / 4, which), p.plans[int(which)]);
      if (which == Product::kQkv) turns.attention(decode_attention(step, p.scratch, i / 4));
    }
  }
};

// What a step's launches would be, instead of launching them.
struct LargestShared {
  int64_t bytes = 0;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    bytes = larger(bytes, Kernel::grid(params).shared_bytes);
  }
};

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

// Of a step that one kernel can do; `blocks` are still missing.
template <class Weight, class Cache, int kRows>
PersistentStepParams persistent_params(const DecodeStepParams& step) {
  using Kernel = PersistentStep<Weight, Cache, kRows>;
  PersistentStepParams p{};
  p.step = step;
  p.scratch = decode_scratch(step);
  p.arrived = p.scratch.arrived;
  for (int64_t i = 0; i < step.decode.layers_count; ++i) {
    p.layers[i] = step.decode.layers[i];
    p.caches[i] = step.decode.caches[i];
  }
  LargestShared largest;
  for (int i = 0; i < kProducts; ++i) {
    GemvParams g = product_of(step, p.scratch, 0, Product(i));
    g.warps = warps_of_output(g);
    largest.launch<typename Kernel::Gemv>(g);
    p.plans[i] = {int32_t(Kernel::Gemv::grid(g).blocks), g.warps};
  }
  const Grid attention = Kernel::Attention::grid(decode_attention(step, p.scratch, 0));
  p.attention_blocks = int32_t(attention.blocks);
  p.part_bytes = int32_t(ceil_div(attention.shared_bytes, 16) * 16);
  p.shared_bytes = int32_t(larger(largest.bytes, Kernel::kParts * p.part_bytes));
  return p;
}

// Executor: launch_persistent<Kernel>(PersistentStepParams), which chooses `blocks` and clears `arrived`.
template <class Weight, class Cache, class Executor>
void launch_persistent_of(Executor& executor, const DecodeStepParams& step) {
  if (step.decode.batch * step.decode.tokens == 1) {
    executor.template launch_persistent<PersistentStep<Weight, Cache, 1>>(
        persistent_params<Weight, Cache, 1>(step));
  } else {
    executor.template launch_persistent<PersistentStep<Weight, Cache, 4>>(
        persistent_params<Weight, Cache, 4>(step));
  }
}

template <class Executor>
void launch_persistent(Executor& executor, const DecodeStepParams& step) {
  const DType dtype = step.decode.head.dtype;
  if (dtype == DType::kInt8) return launch_persistent_of<int8_t, Half>(executor, step);
  with_float_type(dtype, [&](auto zero) {
    using Weight = decltype(zero);
    launch_persistent_of<Weight, Weight>(executor, step);
  });
}

}  // namespace bark_accel::cuda
