// Whole decode steps as one kernel, whose blocks all run at once and wait for each other between the parts
// that decode_step.cuh launches one by one. The bodies are the same, and so is every sum: a result does not
// depend on the number of blocks, nor on which of the two ways is taken. Gained is the time between kernels;
// the first weights of a product are on their way while the block waits for the others. With the draws
// inside, a launch is many tokens, up to the end of speech.
#pragma once

#include "weight_ring.cuh"

namespace bark_accel::cuda {

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
  using Sampler = FusedSample<float, kThreads>;
  static constexpr int kParts = kThreads / Attention::kThreads;
  // Of weights in shared memory, with the scales of int8.
  static constexpr int kBatchBytes =
      Gemv::kOutputs * kThreads * int(sizeof(Words) + (sizeof(Weight) == 1 ? sizeof(float) : 0));

  static Grid grid(const Params& p) { return {p.blocks, kThreads, p.shared_bytes}; }

  // The same with a ring of weights behind what the bodies need of shared memory.
  static Params with_ring(Params p, int32_t depth) {
    p.ring_begin = int32_t(ceil_div(p.shared_bytes, 16) * 16);
    p.ring_depth = depth;
    p.shared_bytes = p.ring_begin + depth * kBatchBytes;
    return p;
  }

  // With the longest of them for which a block's shared memory has room; ring_depth 0: it has none.
  static Params with_longest_ring(const Params& p, int64_t most_bytes) {
    return with_ring(p, ring_depth(most_bytes - ceil_div(p.shared_bytes, 16) * 16, kBatchBytes));
  }

  // A row that could not be sampled has ended as well: its id is minus the SampleStatus.
  BARK_DEVICE static bool has_ended(const TokenRun& run, int64_t id) {
    return run.stop >= 0 && (id < 0 || id == run.stop);
  }

  // A block a row. A row that has ended keeps its token, as stock pads it. Called, so that the products keep
  // their registers.
  template <class Context>
  BARK_CALLED static void draw_rows(const PhaseContext<Context>& turn, const Params& p,
                                    const FusedSampleParams& sample) {
    PhaseContext<Context> inner = turn;
    for (; inner.at < sample.rows; inner.at += p.blocks) {
      inner.wait_for_previous();
      const int64_t row = inner.at, last = sample.next.ids[row];
      if (!has_ended(p.run, last)) {
        Sampler::draw(inner, sample, row);
      } else if (inner.thread() == 0) {
        Sampler::move_on(sample.next, row, sample.rows, last);
      }
    }
  }

  // One part of the step after the other, by this block.
  template <class Context, class Source>
  struct Turns {
    const Context& ctx;
    const Params& p;
    Source& weights;
    uint32_t phase = 0;

    BARK_DEVICE PhaseContext<Context> begin() const {
      return {ctx, ctx.block(), p.arrived, phase * uint32_t(p.blocks), false};
    }

    BARK_DEVICE void gemv(GemvParams g, ProductPlan plan) {
      PhaseContext<Context> inner = begin();
      g.warps = plan.warps;
      bool fresh = true;
      BARK_ROLLED
      for (; inner.at < plan.blocks; inner.at += p.blocks) {
        if (!fresh) ctx.barrier();  // shared memory is free again
        Gemv::run_from(inner, g, weights, fresh);
        fresh = false;
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

    BARK_DEVICE void draw(const FusedSampleParams& sample) {
      const PhaseContext<Context> inner = begin();
      draw_rows(inner, p, sample);
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

  // Whether every row has ended: the same in every block, for nobody draws before all have looked.
  BARK_DEVICE static bool all_ended(const Params& p) {
    bool all = true;
    for (int64_t row = 0; row < p.step.decode.batch; ++row) {
      all = all && has_ended(p.run, p.step.decode.ids[row]);
    }
    return all;
  }

  // The step's products in their order, each layer's attention between them. False: all rows had
  // ended. That shows after the first product, whose weights need not wait for the draw before.
  template <class Context, class Source>
  BARK_DEVICE static bool token(Turns<Context, Source>& turns, const DecodeStepParams& step, int way) {
    const Params& p = turns.p;
    const int products = 4 * int(step.decode.layers_count) + 1;
    BARK_ROLLED
    for (int i = 0; i < products; ++i) {
      const Product which = i + 1 == products ? Product::kHead : Product(i % 4);
      const Draw& draw = p.run.draws[way];
      GemvParams g = which == Product::kHead ? head_product(step, p.scratch, draw.head, draw.head_rows)
                                             : product_of(step, p.scratch, i / 4, which);
      g.waits_first = false;  // nothing in here writes weights, and who did so before is done
      turns.gemv(g, which == Product::kHead ? p.head_plans[way] : p.plans[int(which)]);
      if (i == 0 && all_ended(p)) return false;
      if (which == Product::kQkv) turns.attention(decode_attention(step, p.scratch, i / 4));
    }
    return true;
  }

  template <class Context, class Source>
  BARK_DEVICE static void tokens(const Context& ctx, const Params& p, Source& weights) {
    DecodeStepParams step = p.step;
    step.decode.layers = p.layers;
    step.decode.caches = p.caches;
    Turns<Context, Source> turns{ctx, p, weights};
    const int limit = p.run.ways ? int(*p.run.limit) : 1;
    BARK_ROLLED
    for (int i = 0; i < limit; ++i) {
      const int way = p.run.ways == 2 ? i % 2 : 0;
      if (!token(turns, step, way)) return;
      if (p.run.ways) turns.draw(p.run.draws[way].sample);
    }
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    ctx.wait_for_previous();
    if constexpr (Context::kCopies) {
      WeightRing<Gemv, Context> weights(ctx, p);
      tokens(ctx, p, weights);
      weights.end();
    } else {
      typename Gemv::Registers weights;
      tokens(ctx, p, weights);
    }
  }
};

// Executor: launch_persistent<Kernel>(PersistentStepParams), which chooses `blocks` and clears `arrived`.
template <class Weight, class Cache, class Executor>
void launch_persistent_of(Executor& executor, const DecodeStepParams& step, const TokenRun& run) {
  using One = PersistentStep<Weight, Cache, 1>;
  using Four = PersistentStep<Weight, Cache, 4>;
  if (step.decode.batch * step.decode.tokens == 1) {
    executor.template launch_persistent<One>(persistent_params<One>(step, run));
  } else {
    executor.template launch_persistent<Four>(persistent_params<Four>(step, run));
  }
}

// Of what is_persistent.
template <class Executor>
void launch_persistent(Executor& executor, const DecodeStepParams& step, const TokenRun& run) {
  const DType dtype = run.ways ? run.draws[0].head.dtype : step.decode.head.dtype;
  if (dtype == DType::kInt8) return launch_persistent_of<int8_t, Half>(executor, step, run);
  with_float_type(dtype, [&](auto zero) {
    using Weight = decltype(zero);
    launch_persistent_of<Weight, Weight>(executor, step, run);
  });
}

}  // namespace bark_accel::cuda
