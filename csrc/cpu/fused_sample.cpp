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

at::Tensor sample_rows(const char* op, const SampleParams& p, const at::Tensor& logits) {
  const KernelTable& table = kernels();
  const int64_t rows = logits.size(0), allowed = p.end - p.begin + 1;
  at::Tensor out = at::empty({rows}, logits.options().dtype(at::kLong));
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kValuesPerTask / allowed), [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(table.sample_scratch(allowed));
    for (int64_t n = begin; n < end; ++n) {
      const SampleStatus status = table.sample_row(p, n, scratch, ids + n);
      if (status != SampleStatus::kOk) ids[n] = -int64_t(status);
    }
  });
  raise_bad_rows(op, ids, rows);
  return out;
}

at::Tensor fused_sample(const at::Tensor& logits, const std::optional<at::Tensor>& noise, int64_t first_id,
                        int64_t allowed_begin, int64_t allowed_end, int64_t eos_id, double min_eos_p,
                        double temperature, int64_t top_k, double top_p, bool renormalize) {
  const char* op = "fused_sample";
  SampleParams p = checked_params(op, logits, first_id, allowed_begin, allowed_end, eos_id, min_eos_p,
                                  temperature, top_k, top_p, renormalize);
  if (noise) {
    check_noise(op, *noise, logits, first_id);
    p.noise = noise->const_data_ptr<float>();
    p.noise_stride = noise->stride(0);
  }
  return sample_rows(op, p, logits);
}

at::Tensor fused_multinomial(const at::Tensor& logits, const std::optional<at::Generator>& generator,
                             int64_t vocab_size, int64_t first_id, int64_t allowed_begin, int64_t allowed_end,
                             int64_t eos_id, double min_eos_p, double temperature, int64_t top_k,
                             double top_p, bool renormalize) {
  const char* op = "fused_multinomial";
  SampleParams p = checked_params(op, logits, first_id, allowed_begin, allowed_end, eos_id, min_eos_p,
                                  temperature, top_k, top_p, renormalize);
  const int64_t stop = first_id + logits.size(1), rows = logits.size(0);
  BARK_CHECK(vocab_size >= stop, op, "expected vocab_size >= ", stop, ", the end of the logits' ids, got ",
             vocab_size);
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
  return sample_rows(op, p, logits);
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) {
  m.impl("fused_sample", fused_sample);
  m.impl("fused_multinomial", fused_multinomial);
}

}  // namespace bark_accel
