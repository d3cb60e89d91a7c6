// The whole step of csrc/cuda/decode_step.cuh, the kernels in their order, against double precision.
#include "decode_step.cuh"

#include "model.h"
#include "persistent_step.cuh"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

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

DecodeStepParams params(const Model& m, Caches& caches, std::vector<DecodeLayer>& layers,
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
std::vector<float> run_step(Run& run, const Model& m, Caches& caches, const std::vector<int64_t>& ids,
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

void check_model(Run& run, const Model& m) {
  Caches caches = random_caches(run, m);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < m.batch * m.tokens; ++i) ids.push_back(run.integer(0, m.vocabulary - 1));
  const std::vector<float> logits = run_step(run, m, caches, ids);
  for (int64_t b = 0; b < m.batch; ++b) {
    for (int64_t t = 0; t < m.tokens; ++t) {
      const int64_t row = b * m.tokens + t;
      if (m.lengths[b] < 0) {
        run.expect(std::isnan(logits[row * m.head_rows]), "NaN in an idle row");
        continue;
      }
      const std::vector<double> expected = reference_logits(m, caches, b, t, ids[row]);
      double scale = 1;
      for (const double x : expected) scale = std::max(scale, std::fabs(x));
      // A 16-bit cache may round a key the other way.
      const double tolerance = m.cache == DType::kFloat32 ? 2e-5 : 2e-2;
      for (int64_t n = 0; n < m.head_rows; ++n) {
        run.expect_close(logits[row * m.head_rows + n], expected[n], scale, tolerance,
                         "row " + std::to_string(row) + ", logit " + std::to_string(n));
      }
    }
  }
}

void small_models(Run& run) {
  check_model(run, random_model(run, run.integer(1, 2), run.pick<int64_t>({3, 8})));
}

void models(Run& run) {
  check_model(run, random_model(run, run.integer(1, 3), run.pick<int64_t>({16, 20, 32})));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

// One kernel, its blocks all at once and of any number, gives the bits of the kernels one by one.
void check_as_one_kernel(Run& run, Model m, std::initializer_list<std::pair<int64_t, int64_t>> shapes) {
  m.cache = m.weights == DType::kInt8 ? DType::kFloat16 : m.weights;
  const auto [batch, tokens] = run.pick(shapes);
  m.batch = batch;
  m.tokens = tokens;
  set_lengths(run, m);
  Caches one_by_one = random_caches(run, m), as_one = one_by_one;
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < m.batch * m.tokens; ++i) ids.push_back(run.integer(0, m.vocabulary - 1));
  const std::vector<float> expected = run_step(run, m, one_by_one, ids);
  run.expect(same_bits(run_step(run, m, as_one, ids, true), expected), "logits of one kernel");
  run.expect(as_one.storage == one_by_one.storage, "caches of one kernel");
}

void as_one_kernel(Run& run) {
  check_as_one_kernel(run, random_model(run, run.integer(1, 2), run.pick<int64_t>({16, 32, 64})),
                      {{1, 1}, {1, 1}, {1, 3}, {2, 2}, {4, 1}});
}

// Of four rows no more than 2048 elements are in shared memory at a time.
void as_one_kernel_in_tiles(Run& run) {
  check_as_one_kernel(run, random_model(run, 1, 16, 2112), {{2, 1}, {3, 1}, {1, 4}});
}

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

Speech random_speech(Run& run) {
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
void speak_one_by_one(Run& run, const Speech& s, Spoken& to) {
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

// One launch, its blocks all at once and of any number, draws what kernels one by one draw, and no more.
void many_tokens(Run& run) {
  const Speech s = random_speech(run);
  const Caches caches = random_caches(run, s.model);
  Spoken expected(s, caches), got(s, caches);
  speak_one_by_one(run, s, expected);
  TokenRun tokens{};
  tokens.ways = int32_t(s.ways);
  for (int64_t w = 0; w < s.ways; ++w) tokens.draws[w] = got.draw(s, w);
  tokens.limit = &s.limit;
  tokens.stop = s.stop;
  DecodeStepParams step = got.step(s);
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  run.expect(is_persistent(step, tokens), "a model whose tokens one kernel can draw");
  launch_persistent(run.executor, step, tokens);
  run.expect(got == expected, "tokens of one launch");
}

// A row whose scores cannot be drawn from has ended, as far as a launch with a stop token goes.
void a_row_that_fails(Run& run) {
  Speech s = random_speech(run);
  s.limit = s.room = 5;
  s.stop = s.model.vocabulary;
  for (int64_t& length : s.model.lengths) length = s.model.capacity;  // NaN
  Spoken got(s, random_caches(run, s.model));
  for (int64_t& id : got.ids) id = 0;
  TokenRun tokens{};
  tokens.ways = int32_t(s.ways);
  for (int64_t w = 0; w < s.ways; ++w) tokens.draws[w] = got.draw(s, w);
  tokens.limit = &s.limit;
  tokens.stop = s.stop;
  DecodeStepParams step = got.step(s);
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  launch_persistent(run.executor, step, tokens);
  for (int64_t b = 0; b < s.model.batch; ++b) {
    run.expect(got.ids[b] == -int64_t(SampleStatus::kNotFinite),
               "the status of a row that cannot be sampled");
    run.expect(got.count[b] == 1, "no token after all rows have failed");
  }
}

// An id or a length that does not fit gives NaN in its row.
void bad_inputs(Run& run) {
  Model m = random_model(run, 2, 8);
  Caches caches = random_caches(run, m);
  std::vector<int64_t> ids(m.batch * m.tokens, 1);
  const bool bad_length = run.coin();
  m.lengths.assign(m.batch, 3);
  if (bad_length) m.lengths[0] = run.coin() ? -1 : m.capacity - m.tokens + 1;
  ids[0] = bad_length ? 1 : run.pick<int64_t>({-1, m.vocabulary});
  const std::vector<float> logits = run_step(run, m, caches, ids);
  for (int64_t i = 0; i < m.head_rows; ++i) run.expect(std::isnan(logits[i]), "NaN in the first row");
  for (size_t i = m.tokens * m.head_rows; i < logits.size(); ++i) {
    run.expect(!std::isnan(logits[i]), "another batch row");
  }
}

template <class F>
void with_weight_type(DType dtype, F f) {
  dtype == DType::kInt8 ? f(int8_t{}) : with_float_type(dtype, f);
}

// Counts what would be launched.
struct CountingExecutor {
  int64_t launches = 0;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    launches += Kernel::grid(params).blocks > 0;
  }
  void gemv(const GemvParams& p) { launch_gemv(*this, p); }
  void attention(const AttentionSplitParams& p, DType cache) {
    launch_attention_split(*this, p, DType::kFloat32, cache);
  }
};

// What is launched of a step of bark-small's or bark's shape; without data.
class RealStep {
 public:
  RealStep(int64_t layers, int64_t heads, int64_t width, DType dtype, int64_t batch)
      : wide_(matrix(width, dtype)), deep_(matrix(4 * width, dtype)), caches_(layers) {
    const NormView norm{&one_, nullptr, 1e-5f};
    layers_.assign(layers, {norm, wide_, wide_, norm, wide_, deep_});
    DecodeParams& p = step.decode;
    p.batch = batch;
    p.tokens = 1;
    p.width = width;
    p.heads = heads;
    p.inner = 4 * width;
    p.layers_count = layers;
    p.head_rows = 10001;
    p.layers = layers_.data();
    p.caches = caches_.data();
    p.norm_final = norm;
    p.head = wide_;
    step.capacity = 1024;
    step.splits = attention_splits(batch, heads, 1024);
  }
  RealStep(const RealStep&) = delete;

  DecodeStepParams step{};

 private:
  static MatrixView matrix(int64_t depth, DType dtype) {
    return {nullptr, depth, depth, dtype, nullptr, depth / kInt8Group, kInt8Group, nullptr};
  }

  const float one_ = 1;
  MatrixView wide_, deep_;
  std::vector<DecodeLayer> layers_;
  std::vector<CacheView> caches_;
};

constexpr struct {
  int64_t layers, heads, width, most_kernels;
} kShapes[] = {{12, 12, 768, 61}, {24, 16, 1024, 121}};

// Kernels of a step, which the sampler's is to be added to.
void launches_of_a_step(Run& run) {
  for (const auto& shape : kShapes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
      const RealStep real(shape.layers, shape.heads, shape.width, dtype, run.integer(1, kMostRows));
      CountingExecutor counting;
      decode_step(counting, real.step);
      run.expect(counting.launches <= shape.most_kernels,
                 std::to_string(counting.launches) + " kernels a step");
    }
  }
}

template <class Weight, class Cache, int kRows>
void check_rings(Run& run, const DecodeStepParams& step, const TokenRun& tokens) {
  using Kernel = PersistentStep<Weight, Cache, kRows>;
  const PersistentStepParams plain = persistent_params<Kernel>(step, tokens);
  run.expect(plain.shared_bytes <= 64 * 1024, std::to_string(plain.shared_bytes) + " bytes on sm_75");
  // What a block may have of the shared memory of sm_86, 89 and 120, of sm_80, of sm_90 and 100; batches.
  const struct {
    int64_t bytes;
    int32_t fewest;
  } devices[] = {{99 * 1024, 4}, {163 * 1024, 10}, {227 * 1024, 14}};
  for (const auto& device : devices) {
    const PersistentStepParams p = Kernel::with_longest_ring(plain, device.bytes);
    run.expect(p.ring_depth >= device.fewest && p.shared_bytes <= device.bytes && p.ring_begin % 16 == 0,
               std::to_string(p.ring_depth) + " batches in " + std::to_string(device.bytes) + " bytes");
  }
}

// The kernel for whole launches fits each kind of device, with weights ahead where there are copies for it.
void rings_of_devices(Run& run) {
  for (const auto& shape : kShapes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
      for (const int64_t batch : {1, 4}) {
        const RealStep real(shape.layers, shape.heads, shape.width, dtype, batch);
        TokenRun tokens{};
        tokens.ways = 1;
        tokens.draws[0].head = real.step.decode.head;
        tokens.draws[0].head_rows = tokens.draws[0].sample.rules.columns = 10001;
        with_weight_type(dtype, [&](auto zero) {
          using Weight = decltype(zero);
          using Cache = std::conditional_t<sizeof(Weight) == 1, Half, Weight>;
          batch == 1 ? check_rings<Weight, Cache, 1>(run, real.step, tokens)
                     : check_rings<Weight, Cache, 4>(run, real.step, tokens);
        });
      }
    }
  }
}

constexpr Case kCases[] = {
    {"launches of a step", 1, false, launches_of_a_step},
    {"rings of devices", 1, false, rings_of_devices},
    {"small models", 24, true, small_models},
    {"models", 8, false, models},
    {"a row that fails", 4, false, a_row_that_fails},
    {"many tokens", 24, false, many_tokens},
    {"as one kernel", 32, true, as_one_kernel},
    {"as one kernel, in tiles", 6, false, as_one_kernel_in_tiles},
    {"bad inputs", 8, false, bad_inputs},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
