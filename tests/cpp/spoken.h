// Many tokens at once: steps with the draws behind them, one by one and in one launch.
#pragma once

#include "step.h"

namespace support {

// A model whose every id is drawn from one of two heads in turns, or from one, and what both ways share.
struct Speech {
  Model model;
  int64_t ways, room, limit, stop, lanes;
  std::vector<int64_t> first_ids;  // of the heads, and one more
  std::vector<int64_t> start;      // ids [B]
  int64_t philox[2];
  bool greedy;
  int64_t top_k;
  float temperature;
};

inline Speech random_speech(Run& run) {
  Speech s{random_model(run, run.integer(1, 2), run.pick<int64_t>({16, 32}))};
  Model& m = s.model;
  m.cache = m.weights == DType::kInt8 ? DType::kFloat16 : m.weights;
  m.batch = run.integer(1, 4);
  m.tokens = 1;
  m.head_rows = m.vocabulary = 45;  // several blocks of a head
  m.token_table = Matrix::random(run, m.vocabulary, m.width(), m.tables, false);
  m.head = Matrix::random(run, m.vocabulary, m.width(), m.weights, false);
  m.lengths.clear();
  for (int64_t b = 0; b < m.batch; ++b) m.lengths.push_back(run.integer(0, 3));
  s.ways = run.integer(1, 2);
  s.first_ids = s.ways == 1 ? std::vector<int64_t>{0, m.vocabulary}
                            : std::vector<int64_t>{0, run.integer(1, m.vocabulary - 1), m.vocabulary};
  s.limit = run.integer(0, 4);
  s.room = run.integer(1, 4);
  m.layers.pop_back();
  s.stop = run.coin() ? -1 : run.integer(0, m.vocabulary - 1);
  for (int64_t b = 0; b < m.batch; ++b) {
    s.start.push_back(s.stop >= 0 && run.integer(0, 3) == 0 ? s.stop : run.integer(0, m.vocabulary - 1));
  }
  s.lanes = 32 * run.integer(1, 3);
  s.philox[0] = run.integer(0, 1 << 30);
  s.philox[1] = 4 * run.integer(0, 9);
  s.greedy = run.integer(0, 3) == 0;
  s.top_k = run.pick<int64_t>({0, 3});
  s.temperature = 2.0f;
  return s;
}

// Everything that the tokens of a launch move on, and where they are drawn from.
struct Spoken {
  std::vector<int64_t> ids, drawn, count, length;
  Caches caches;
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  std::vector<float> logits;
  std::vector<std::vector<int64_t>> allowed;  // begin, end, eos of each way
  double temperature;

  Spoken(const Speech& s, const Caches& caches)
      : ids(s.start),
        drawn(s.room * s.model.batch, -99),
        count(s.model.batch, 0),
        length(s.model.lengths),
        caches(caches),
        logits(s.model.batch * s.model.vocabulary, NAN),
        temperature(s.temperature) {
    for (int64_t w = 0; w < s.ways; ++w) allowed.push_back({s.first_ids[w], s.first_ids[w + 1], -1});
  }

  bool operator==(const Spoken& o) const {
    return ids == o.ids && drawn == o.drawn && count == o.count && length == o.length &&
           caches.storage == o.caches.storage;
  }

  DecodeStepParams step(const Speech& s) {
    layers.clear();
    views.clear();
    DecodeStepParams step = params(s.model, caches, layers, views);
    step.decode.ids = ids.data();
    step.decode.lengths = length.data();
    step.decode.logits = logits.data();
    return step;
  }

  Draw draw(const Speech& s, int64_t way) {
    const Model& m = s.model;
    const int64_t first = s.first_ids[way], rows = s.first_ids[way + 1] - first;
    Draw d{};
    d.head = m.head.at();
    d.head.weight = static_cast<const char*>(d.head.weight) + first * d.head.stride * size_of(m.weights);
    if (d.head.scales) d.head.scales += first * d.head.scale_stride;
    d.head_rows = rows;
    FusedSampleParams& p = d.sample;
    p.sample.logits = logits.data();
    p.sample.row_stride = rows;
    p.sample.dtype = DType::kFloat32;
    p.sample.first_id = first;
    p.sample.renormalize = true;
    const int64_t* a = allowed[way].data();
    p.rules = {{a, 0, 0},        {a + 1, 0, 0},   {a + 2, 0, 0}, {nullptr, 0, 0}, {&temperature, 0, 1},
               {&s.top_k, 0, 0}, {nullptr, 0, 1}, rows};
    if (!s.greedy) {
      p.philox = {s.philox, count.data(), m.vocabulary, uint32_t(m.batch * m.vocabulary), uint32_t(s.lanes)};
    }
    p.rows = m.batch;
    p.ids = ids.data();
    p.next = {ids.data(), drawn.data(), count.data(), length.data(), s.room};
    return d;
  }
};

// Steps and draws as kernels of their own, as the host would launch them.
inline void speak_one_by_one(Run& run, const Speech& s, Spoken& to) {
  const auto ended = [&](int64_t id) { return s.stop >= 0 && id == s.stop; };
  StepExecutor executor{run};
  for (int64_t i = 0; i < s.limit; ++i) {
    if (std::all_of(to.ids.begin(), to.ids.end(), ended)) return;
    const Draw draw = to.draw(s, i % s.ways);
    DecodeStepParams step = with_head(to.step(s), draw);
    Buffer<float> scratch(decode_scratch(step).floats);
    step.decode.scratch = scratch.data();
    decode_step(executor, step);
    const std::vector<int64_t> before = to.ids;
    launch_fused_sample(run.executor, draw.sample);
    for (size_t b = 0; b < before.size(); ++b) {
      if (!ended(before[b])) continue;
      to.ids[b] = before[b];
      if (i < s.room) to.drawn[i * s.model.batch + b] = before[b];
    }
  }
}

// The persistent kernel, its blocks all at once and of any number.
inline void speak_in_one_launch(Run& run, const Speech& s, Spoken& to) {
  TokenRun tokens{};
  tokens.ways = int32_t(s.ways);
  for (int64_t w = 0; w < s.ways; ++w) tokens.draws[w] = to.draw(s, w);
  tokens.limit = &s.limit;
  tokens.stop = s.stop;
  DecodeStepParams step = to.step(s);
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  run.expect(is_persistent(step, tokens), "a model whose tokens one kernel can draw");
  launch_persistent(run.executor, step, tokens);
}

}  // namespace support
