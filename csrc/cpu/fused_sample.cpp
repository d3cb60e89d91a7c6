#include <algorithm>

#include "../sample_inputs.h"
#include "generator_state.h"
#include "isa.h"

namespace bark_accel {
namespace {

using namespace sample_inputs;

constexpr int64_t kValuesPerTask = 32768;

// `states`: of a generator for each row, which draws `entries` numbers. Not `checked`: ids of rows that
// cannot be sampled are minus their status.
Tensor sample_rows(const char* op, const SampleParams& p, const SampleRules& rules, const Tensor& logits,
                   const std::vector<GeneratorState*>& states = {}, int64_t entries = 0,
                   bool checked = true) {
  const KernelTable& table = kernels();
  const int64_t rows = logits.size(0);
  int64_t allowed = 1;
  for (int64_t n = 0; n < rows; ++n) allowed = std::max(allowed, rules.end.of(n) - rules.begin.of(n) + 1);
  Tensor out = empty({rows}, kLong, logits.device());
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  const int64_t values = allowed + 2 * entries;
  parallel_for(0, rows, std::max<int64_t>(1, kValuesPerTask / values), [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(table.sample_scratch(allowed));
    for (int64_t n = begin; n < end; ++n) {
      SampleParams row = with_rules(p, rules, n);
      Words own;  // outlives the draw
      if (!states.empty()) {
        own = Words(*states[n], entries);
        row.words = own.first();
      }
      const SampleStatus status = table.sample_row(row, n, scratch, ids + n);
      if (status != SampleStatus::kOk) ids[n] = -int64_t(status);
    }
  });
  if (checked) raise_bad_rows(op, ids, rows);
  return out;
}

template <bool checked>
Tensor fused_sample(const Tensor& logits, const std::optional<Tensor>& noise, int64_t first_id,
                    const Tensor& allowed, const std::optional<Tensor>& min_eos_p,
                    const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
                    const std::optional<Tensor>& top_p, bool renormalize) {
  const char* op = "fused_sample";
  SampleParams p = checked_params(op, logits, first_id, renormalize);
  const SampleRules rules = read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  check_rows(op, rules, first_id, logits.size(0));
  if (noise) {
    check_noise(op, *noise, logits, first_id);
    p.noise = noise->const_data_ptr<float>();
    p.noise_stride = noise->stride(0);
  }
  return sample_rows(op, p, rules, logits, {}, 0, checked);
}

GeneratorState& checked_state(const char* op, Tensor& state) {
  check_device(op, "a generator's state", state, kCPU);
  BARK_CHECK(state.scalar_type() == kByte && state.sizes() == Sizes{kStateBytes} && state.stride(0) == 1, op,
             "expected a generator's state of ", kStateBytes, " bytes, got ", state.scalar_type(),
             " of shape ", state.sizes());
  const int64_t left = state.const_data_ptr<GeneratorState>()->left;
  BARK_CHECK(left >= 1 && left <= kMt19937Block, op, "expected a generator's state, got one with ", left,
             " words left");
  return *state.mutable_data_ptr<GeneratorState>();
}

// fused_multinomial, of a generator that comes as its state.
Tensor fused_multinomial(const Tensor& logits, Tensor& state, int64_t vocab_size, int64_t first_id,
                         const Tensor& allowed, const std::optional<Tensor>& min_eos_p,
                         const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
                         const std::optional<Tensor>& top_p, bool renormalize) {
  const char* op = "fused_multinomial";
  SampleParams p = checked_params(op, logits, first_id, renormalize);
  const SampleRules rules = read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  const int64_t rows = logits.size(0);
  check_rows(op, rules, first_id, rows);
  check_vocab_size(op, vocab_size, first_id, logits);
  const Words words(checked_state(op, state), rows * vocab_size);
  p.words = words.first();
  p.noise_stride = vocab_size;
  return sample_rows(op, p, rules, logits);
}

// The same of a generator for each row, whose work threads share.
Tensor multinomial_of_each(const Tensor& logits, std::vector<Tensor>& states, int64_t vocab_size,
                           int64_t first_id, const Tensor& allowed, const std::optional<Tensor>& min_eos_p,
                           const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
                           const std::optional<Tensor>& top_p, bool renormalize) {
  const char* op = "fused_multinomial";
  const SampleParams p = checked_params(op, logits, first_id, renormalize);
  const SampleRules rules = read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  const int64_t rows = logits.size(0);
  check_rows(op, rules, first_id, rows);
  check_vocab_size(op, vocab_size, first_id, logits);
  BARK_CHECK(int64_t(states.size()) == rows, op, "expected states of ", rows, " generators, got ",
             states.size());
  std::vector<GeneratorState*> checked;
  for (Tensor& state : states) {
    GeneratorState* one = &checked_state(op, state);
    BARK_CHECK(std::find(checked.begin(), checked.end(), one) == checked.end(), op,
               "expected states that differ, got one twice");
    checked.push_back(one);
  }
  return sample_rows(op, p, rules, logits, checked, vocab_size);
}

}  // namespace

const Implementations registered("CPU", {implement<fused_sample<true>>("fused_sample"),
                                         implement<fused_sample<false>>("fused_sample.unchecked"),
                                         implement<fused_multinomial>("fused_multinomial.state"),
                                         implement<multinomial_of_each>("fused_multinomial.states")});

}  // namespace bark_accel
