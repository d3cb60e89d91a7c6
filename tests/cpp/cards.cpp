// The kernel for whole steps with as many blocks at once, and rings as long, as cards have room for: the bits
// of the kernels one by one.
#include "model.h"
#include "persistent_step.cuh"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

constexpr emulator::Card kT4{40, 64 * 1024, false}, kRtx3060{28, 99 * 1024}, kRtx3090{82, 99 * 1024};
constexpr emulator::Card kRtx4090{128, 99 * 1024}, kA100{108, 163 * 1024}, kH100{132, 227 * 1024};

struct StepExecutor {
  Executor& executor;
  void gemv(const GemvParams& p) { launch_gemv(executor, p); }
  void attention(const AttentionSplitParams& p, DType cache) {
    launch_attention_split(executor, p, DType::kFloat32, cache);
  }
};

// Logits of a step of one token a row.
std::vector<float> run_step(Run& run, const Model& m, Caches& caches, const std::vector<int64_t>& ids,
                            bool as_one) {
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  DecodeStepParams step{};
  step.decode = decode_params(m, caches, layers, views);
  step.capacity = step.positions_count = m.capacity;
  step.vocabulary = m.vocabulary;
  step.splits = 5;
  std::vector<float> logits(m.batch * m.head_rows, NAN);
  step.decode.ids = ids.data();
  step.decode.logits = logits.data();
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  StepExecutor executor{run.executor};
  run.expect(is_persistent(step), "a model that one kernel can do");
  as_one ? launch_persistent(run.executor, step, {}) : decode_step(executor, step);
  return logits;
}

// Most blocks have nothing to do in any part; or the head has more than a block's worth for each.
void steps_on(Run& run, const emulator::Card& card, bool wide) {
  run.executor.session.card = card;
  Model m = random_model(run, 4, 16, 64);
  m.batch = run.pick<int64_t>({1, 4});
  m.tokens = 1;
  m.cache = m.weights == DType::kInt8 ? DType::kFloat16 : m.weights;
  m.head_rows = (wide ? 16 * card.multiprocessors : 0) + run.integer(1, 400);
  m.head = Matrix::random(run, m.head_rows, m.width(), m.weights, false);
  set_lengths(run, m);
  Caches one_by_one = random_caches(run, m), as_one = one_by_one;
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < m.batch; ++i) ids.push_back(run.integer(0, m.vocabulary - 1));
  const std::vector<float> expected = run_step(run, m, one_by_one, ids, false);
  const std::vector<float> got = run_step(run, m, as_one, ids, true);
  run.expect(!std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), "logits of one kernel");
  run.expect(as_one.storage == one_by_one.storage, "caches of one kernel");
}

constexpr Case kCases[] = {
    {"RTX 3060", 2, true, [](Run& run) { steps_on(run, kRtx3060, run.coin()); }},
    {"T4", 1, false, [](Run& run) { steps_on(run, kT4, true); }},
    {"RTX 3090", 1, false, [](Run& run) { steps_on(run, kRtx3090, false); }},
    {"A100", 1, false, [](Run& run) { steps_on(run, kA100, true); }},
    {"RTX 4090", 1, false, [](Run& run) { steps_on(run, kRtx4090, false); }},
    {"H100", 1, false, [](Run& run) { steps_on(run, kH100, true); }},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
