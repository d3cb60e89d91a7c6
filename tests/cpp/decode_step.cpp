// The whole step of csrc/cuda/decode_step.cuh, the kernels in their order, against double precision; the one
// kernel of csrc/cuda/persistent_step.cuh against them.
#include "real_step.h"
#include "spoken.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

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

// One launch draws what kernels one by one draw, and no more.
void many_tokens(Run& run) {
  const Speech s = random_speech(run);
  const Caches caches = random_caches(run, s.model);
  Spoken expected(s, caches), got(s, caches);
  speak_one_by_one(run, s, expected);
  speak_in_one_launch(run, s, got);
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
  speak_in_one_launch(run, s, got);
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
