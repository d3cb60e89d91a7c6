#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../sample_inputs.h"
#include "isa.h"
#include "lazy_noise.h"

namespace bark_accel {
namespace {

using namespace sample_inputs;

constexpr int64_t kValuesPerTask = 32768;

at::Tensor sample_rows(const char* op, const SampleParams& p, const SampleRules& rules,
                       const at::Tensor& logits) {
  const KernelTable& table = kernels();
  const int64_t rows = logits.size(0);
  int64_t allowed = 1;
  for (int64_t n = 0; n < rows; ++n) allowed = std::max(allowed, rules.end.of(n) - rules.begin.of(n) + 1);
  at::Tensor out = at::empty({rows}, logits.options().dtype(at::kLong));
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kValuesPerTask / allowed), [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(table.sample_scratch(allowed));
    for (int64_t n = begin; n < end; ++n) {
      const SampleStatus status = table.sample_row(with_rules(p, rules, n), n, scratch, ids + n);
      if (status != SampleStatus::kOk) ids[n] = -int64_t(status);
    }
  });
  raise_bad_rows(op, ids, rows);
  return out;
}

at::Tensor fused_sample(const at::Tensor& logits, const std::optional<at::Tensor>& noise, int64_t first_id,
                        const at::Tensor& allowed, const std::optional<at::Tensor>& min_eos_p,
                        const std::optional<at::Tensor>& temperature, const std::optional<at::Tensor>& top_k,
                        const std::optional<at::Tensor>& top_p, bool renormalize) {
  const char* op = "fused_sample";
  SampleParams p = checked_params(op, logits, first_id, renormalize);
  const SampleRules rules = read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  check_rows(op, rules, first_id, logits.size(0));
  if (noise) {
    check_noise(op, *noise, logits, first_id);
    p.noise = noise->const_data_ptr<float>();
    p.noise_stride = noise->stride(0);
  }
  return sample_rows(op, p, rules, logits);
}

at::Tensor fused_multinomial(const at::Tensor& logits, const std::optional<at::Generator>& generator,
                             int64_t vocab_size, int64_t first_id, const at::Tensor& allowed,
                             const std::optional<at::Tensor>& min_eos_p,
                             const std::optional<at::Tensor>& temperature,
                             const std::optional<at::Tensor>& top_k, const std::optional<at::Tensor>& top_p,
                             bool renormalize) {
  const char* op = "fused_multinomial";
  SampleParams p = checked_params(op, logits, first_id, renormalize);
  const SampleRules rules = read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  const int64_t rows = logits.size(0);
  check_rows(op, rules, first_id, rows);
  check_vocab_size(op, vocab_size, first_id, logits);
  const at::Generator source =
      generator && generator->defined() ? *generator : at::detail::getDefaultCPUGenerator();
  BARK_CHECK(source.device().is_cpu(), op, "expected a generator on the cpu, got ", source.device());
  Words words;
  at::Tensor noise;
  if (lazy_noise()) {
    words = draw_words(source, rows * vocab_size);
    p.words = words.first;
  } else {
    noise = at::empty({rows, vocab_size}, at::kFloat).exponential_(1, source);
    p.noise = noise.const_data_ptr<float>();
  }
  p.noise_stride = vocab_size;
  return sample_rows(op, p, rules, logits);
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) {
  m.impl("fused_sample", fused_sample);
  m.impl("fused_multinomial", fused_multinomial);
}

}  // namespace bark_accel
