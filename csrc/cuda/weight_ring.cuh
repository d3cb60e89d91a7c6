// Weights on their way into shared memory while a block of persistent_step.cuh waits for others, a thread's
// own in the order in which it multiplies them: product after product, token after token. A ring of batches,
// each what Gemv reads of one chunk. Nobody reads what another thread has copied, so that no barrier is
// needed.
#pragma once

#include "persistent_params.cuh"

namespace bark_accel::cuda {

template <class Gemv, class Context>
struct WeightRing {
  using Walk = typename Gemv::Walk;
  static constexpr int kOutputs = Gemv::kOutputs;
  static constexpr bool kScaled = Gemv::kLoad == 16;              // int8
  static constexpr int kSize = int(sizeof(Words)) / Gemv::kLoad;  // of a weight

  const Context& ctx;
  const PersistentStepParams& p;
  Words* words;   // [depth, kOutputs, threads]
  float* scales;  // the same of int8
  int slot = 0;   // the oldest, which is the next to be filled as well
  // What is asked for next, of a block of a product.
  int layer = 0, way = 0, block;
  Product which = Product::kQkv;
  MatrixView matrix;
  int outputs, blocks, warps;
  const char* from[kOutputs];  // of this lane
  const float* from_scales[kOutputs];
  int k, left;  // of this lane's elements and this warp's chunks

  BARK_DEVICE WeightRing(const Context& ctx, const PersistentStepParams& p)
      : ctx(ctx),
        p(p),
        words(reinterpret_cast<Words*>(ctx.shared() + p.ring_begin) + ctx.thread()),
        scales(reinterpret_cast<float*>(ctx.shared() + p.ring_begin +
                                        p.ring_depth * kOutputs * Gemv::kThreads * int(sizeof(Words))) +
               ctx.thread()),
        block(int(ctx.block())) {
    if (block >= p.most_blocks) return;  // nothing to do in any product
    read_product();
    enter();
    BARK_ROLLED
    for (int i = 0; i < p.ring_depth; ++i) fetch();
  }

  BARK_DEVICE void next_product() {
    block = int(ctx.block());
    if (which == Product::kHead) {
      which = Product::kQkv;
      layer = 0;
      way = p.run.ways == 2 ? 1 - way : 0;
    } else if (which == Product::kMlpOut && ++layer < int(p.step.decode.layers_count)) {
      which = Product::kQkv;
    } else {
      which = Product(int(which) + 1);
    }
    read_product();
  }

  BARK_DEVICE void read_product() {
    const bool head = which == Product::kHead;
    const ProductPlan plan = head ? p.head_plans[way] : p.plans[int(which)];
    blocks = plan.blocks;
    warps = plan.warps;
    matrix = head ? p.run.draws[way].head : matrix_of(p.layers[layer], which);
    outputs = int(head ? p.run.draws[way].head_rows : outputs_of(p.step.decode, which));
  }

  // A block of a product, or of the next one that has a block for this one to do.
  BARK_DEVICE void enter() {
    while (block >= blocks) next_product();
    const int own = warp_of(ctx) & (warps - 1);
    const int first = Gemv::first_output(block, warp_of(ctx), warps);
    k = own * Gemv::kChunk + lane_of(ctx) * Gemv::kLoad;
    left = (Gemv::chunks(int(matrix.depth)) - own + warps - 1) >> (warps / 2);
    BARK_UNROLL
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t output = smaller(first + o, outputs - 1);
      from[o] = static_cast<const char*>(matrix.weight) + (output * matrix.stride + k) * kSize;
      if constexpr (kScaled)
        from_scales[o] = matrix.scales + output * matrix.scale_stride + k / int(kInt8Group);
    }
  }

  BARK_DEVICE int place(int output) const { return (slot * kOutputs + output) * Gemv::kThreads; }

  // Asks for the next batch, in the place of the oldest.
  BARK_DEVICE void fetch() {
    const bool there = k < int(matrix.depth);
    const int step = warps * Gemv::kChunk;
    BARK_UNROLL
    for (int o = 0; o < kOutputs; ++o) {
      ctx.copy_later(words + place(o), reinterpret_cast<const Words*>(from[o]), there);
      from[o] += step * kSize;
      if constexpr (kScaled) {
        ctx.copy_later(scales + place(o), from_scales[o], there);
        from_scales[o] += step / int(kInt8Group);
      }
    }
    ctx.end_batch();
    slot = slot + 1 == p.ring_depth ? 0 : slot + 1;
    k += step;
    if (--left > 0) return;
    block += p.blocks;
    enter();
  }

  template <class Phase>
  BARK_DEVICE void begin(const Phase&, const GemvParams&, const Walk&) {}

  // See Gemv::Registers.
  BARK_DEVICE void multiply_tile(const Walk& walk, int begin, int end, const float* x,
                                 float (&acc)[Gemv::kSums]) {
    BARK_ROLLED
    for (int c = walk.first(begin); c < end; c += walk.step) {
      ctx.wait_for_batches(p.ring_depth - 1);
      typename Gemv::template Batch<1> batch;
      BARK_UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        batch.words[o][0] = words[place(o)];
        if constexpr (kScaled) batch.scales[o][0] = scales[place(o)];
      }
      Gemv::multiply(batch, x, walk.in_tile * Gemv::kChunk, c - begin, end - begin, walk.step, walk.lane,
                     acc);
      fetch();
    }
  }

  // Before the block ends: what was asked for beyond the last product arrives.
  BARK_DEVICE void end() { ctx.wait_for_batches(0); }
};

}  // namespace bark_accel::cuda
