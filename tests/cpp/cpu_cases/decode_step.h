// A decode step by a team of threads, alone and beside another team.
#pragma once

#include "common.h"

namespace cpu_cases {

inline MatrixView exact(Blocks& to, const Matrix& m) {
  MatrixView v = m.at();
  v.weight = to.exact(m.storage);
  v.scales = v.scales ? to.exact(m.scales) : nullptr;
  v.bias = to.exact(m.bias);
  return v;
}

inline NormView exact(Blocks& to, const Norm& n) { return {to.exact(n.weight), to.exact(n.bias), 1e-5f}; }

// Only rows that are not idle reach the kernel, the last one first.
inline void keep_busy_rows(DecodeParams& p, Model& m) {
  const auto is_idle = [&](int64_t slot) { return m.lengths[slot] < 0; };
  m.slots.erase(std::remove_if(m.slots.begin(), m.slots.end(), is_idle), m.slots.end());
  std::reverse(m.slots.begin(), m.slots.end());
  p.slots = m.slots.data();
  p.batch = int64_t(m.slots.size());
}

inline void decode_steps(Run& run) {
  const KernelTable& table = any_table(run);
  Model m = random_model(run, run.integer(1, 3), run.pick<int64_t>({1, 3, 8, 20, 33}));
  if (m.width() < 3) return;  // a row of two has no variance but its sign: rounding decides
  m.batch = run.pick<int64_t>({1, 1, 2, 4, 7});
  m.inner = run.pick<int64_t>({4 * m.width(), m.width() - 1, 70});
  for (Layer& layer : m.layers) {
    layer.mlp_in = Matrix::random(run, m.inner, m.width(), m.weights, run.coin());
    layer.mlp_out = Matrix::random(run, m.width(), m.inner, m.weights, run.coin());
  }
  // The cache and the positions end with this step, and every id is the last one.
  m.capacity = run.integer(m.tokens, 70);
  set_lengths(run, m);
  m.lengths[0] = m.capacity - m.tokens;
  m.positions = Matrix::random(run, m.capacity, m.width(), m.tables, false);
  std::vector<int64_t> ids(m.batch * m.tokens, m.vocabulary - 1);
  Caches caches = random_caches(run, m);
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  DecodeParams p = decode_params(m, caches, layers, views);
  Blocks to;
  for (size_t i = 0; i < m.layers.size(); ++i) {
    const Layer& from = m.layers[i];
    layers[i] = {exact(to, from.norm_1), exact(to, from.qkv),    exact(to, from.attention_out),
                 exact(to, from.norm_2), exact(to, from.mlp_in), exact(to, from.mlp_out)};
    views[i].keys = to.exact(caches.storage[2 * i]);
    views[i].values = to.exact(caches.storage[2 * i + 1]);
  }
  p.norm_final = exact(to, m.norm_final);
  p.head = exact(to, m.head);
  p.token_table = to.exact(m.token_table.storage);
  p.positions = to.exact(m.positions.storage);
  p.ids = to.exact(ids);
  keep_busy_rows(p, m);
  p.logits = to.result<float>(p.batch * m.tokens * m.head_rows);
  const int64_t threads = run.pick<int64_t>({1, 2, 3, 7});
  p.scratch = to.empty<float>(table.decode_scratch(p, threads));
  run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t t = 0; t < m.tokens; ++t) {
      const std::vector<double> expected = reference_logits(m, caches, m.slots[b], t, ids[0]);
      double scale = 1;
      for (const double x : expected) scale = std::max(scale, std::fabs(x));
      double tolerance = m.cache == DType::kFloat32 ? 2e-5 : m.cache == DType::kFloat16 ? 1e-2 : 4e-2;
      if (m.weights == DType::kInt8) tolerance += 2e-3;
      for (int64_t n = 0; n < m.head_rows; ++n) {
        run.expect_close(p.logits[(b * m.tokens + t) * m.head_rows + n], expected[n], scale, tolerance,
                         "logit " + std::to_string(n));
      }
    }
  }
}

// Two teams at once on one model, as two generations have it, each with a cache and scratch of its own.
inline void two_teams(Run& run) {
  const KernelTable& table = any_table(run);
  Model m = random_model(run, 2, 8);
  for (int64_t& length : m.lengths) length = std::max<int64_t>(length, 0);
  const std::vector<int64_t> ids(m.batch * m.tokens, 1);
  Caches caches[2] = {random_caches(run, m), {}};
  caches[1] = caches[0];
  std::vector<float> logits[2];
  const auto generate = [&](int i, int64_t threads) {
    std::vector<DecodeLayer> layers;
    std::vector<CacheView> views;
    DecodeParams p = decode_params(m, caches[i], layers, views);
    logits[i].resize(m.batch * m.tokens * m.head_rows);
    p.ids = ids.data();
    p.logits = logits[i].data();
    std::vector<float> scratch(table.decode_scratch(p, threads));
    p.scratch = scratch.data();
    run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  };
  std::thread other(generate, 0, 3);
  generate(1, 2);
  other.join();
  run.expect(logits[0] == logits[1], "two teams of different sizes agree to the bit");
  run.expect(caches[0].storage == caches[1].storage, "and so do their caches");
}

}  // namespace cpu_cases
