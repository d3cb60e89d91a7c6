// Steps of a model of model.h under the emulator: kernel by kernel, or all as one.
#pragma once

#include "decode_step.cuh"
#include "model.h"
#include "persistent_step.cuh"

namespace support {

using namespace bark_accel;
using namespace bark_accel::cuda;

struct StepExecutor {
  Run& run;
  Executor& executor = run.executor;
  void gemv(const GemvParams& p) {
    executor.session.released_early = false;
    launch_gemv(executor, p);
    // The kernels behind it ask for weights before they wait, which the one ahead of it may still be writing.
    run.expect(p.waits_first != executor.session.released_early,
               "the step's first kernel waits, then releases");
  }
  void attention(const AttentionSplitParams& p, DType cache) {
    launch_attention_split(executor, p, DType::kFloat32, cache);
  }
};

inline DecodeStepParams params(const Model& m, Caches& caches, std::vector<DecodeLayer>& layers,
                               std::vector<CacheView>& views) {
  DecodeStepParams step{};
  step.decode = decode_params(m, caches, layers, views);
  step.capacity = m.capacity;
  step.vocabulary = m.vocabulary;
  step.positions_count = m.capacity;
  step.splits = 5;
  return step;
}

// What the kernels, or the one that does their work, make of the model: logits [B, T, head_rows].
inline std::vector<float> run_step(Run& run, const Model& m, Caches& caches, const std::vector<int64_t>& ids,
                                   bool as_one = false) {
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  DecodeStepParams step = params(m, caches, layers, views);
  std::vector<float> logits(m.batch * m.tokens * m.head_rows, NAN);
  step.decode.ids = ids.data();
  step.decode.logits = logits.data();
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  StepExecutor executor{run};
  if (as_one) {
    run.expect(is_persistent(step), "a model that one kernel can do");
    launch_persistent(run.executor, step, {});
  } else {
    decode_step(executor, step);
  }
  return logits;
}

}  // namespace support
