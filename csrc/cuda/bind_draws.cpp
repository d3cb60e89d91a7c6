// The samplers on CUDA tensors. See bind.cpp for what is not refused here.
#include "../sample_inputs.h"
#include "device.h"
#include "draw_inputs.h"

namespace bark_accel {
namespace {

// Not `checked`: nothing waits for the device, and ids of rows that cannot be sampled are minus their status.
Tensor sample_rows(const char* op, cuda::FusedSampleParams p, const Tensor& logits, bool checked = true) {
  BARK_CHECK(logits.size(1) <= INT32_MAX, op, "expected logits of fewer than 2^31 ids, got ", logits.size(1));
  const DeviceGuard guard(logits.device());
  const cudaStream_t stream = current_stream(logits.device());
  Tensor out = empty({logits.size(0)}, kLong, logits.device());
  p.rows = logits.size(0);
  p.ids = out.mutable_data_ptr<int64_t>();
  check_launch(op, cuda::launch_fused_sample(p, stream));
  if (checked && !is_capturing(stream)) {
    const Tensor on_host = to_host(out);
    sample_inputs::raise_bad_rows(op, on_host.const_data_ptr<int64_t>(), on_host.size(0));
  }
  return out;
}

template <bool checked>
Tensor fused_sample(const Tensor& logits, const std::optional<Tensor>& noise, int64_t first_id,
                    const Tensor& allowed, const std::optional<Tensor>& min_eos_p,
                    const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
                    const std::optional<Tensor>& top_p, bool renormalize) {
  const char* op = "fused_sample";
  SampleParams p = sample_inputs::checked_params(op, logits, first_id, renormalize);
  const SampleRules rules =
      sample_inputs::read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  if (noise) {
    sample_inputs::check_noise(op, *noise, logits, first_id);
    p.noise = noise->const_data_ptr<float>();
    p.noise_stride = noise->stride(0);
  }
  cuda::FusedSampleParams sample{};
  sample.sample = p;
  sample.rules = rules;
  return sample_rows(op, sample, logits, checked);
}

Tensor draw_next(const Tensor& logits, const std::optional<Tensor>& philox, int64_t vocab_size, Tensor& ids,
                 Tensor& drawn, Tensor& count, Tensor& length, int64_t first_id, const Tensor& allowed,
                 const std::optional<Tensor>& min_eos_p, const std::optional<Tensor>& temperature,
                 const std::optional<Tensor>& top_k, const std::optional<Tensor>& top_p, bool renormalize) {
  const char* op = "draw_next";
  cuda::FusedSampleParams p{};
  p.sample = sample_inputs::checked_params(op, logits, first_id, renormalize);
  p.rules = sample_inputs::read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  sample_inputs::check_vocab_size(op, vocab_size, first_id, logits);
  const int64_t rows = logits.size(0);
  p.next = draw_inputs::read_next(op, ids, drawn, count, length, rows, logits.device());
  if (philox) p.philox = draw_inputs::read_philox(op, *philox, p.next, rows, vocab_size, logits.device());
  return sample_rows(op, p, logits);
}

}  // namespace

const Implementations draws_registered("CUDA", {implement<fused_sample<true>>("fused_sample"),
                                                implement<fused_sample<false>>("fused_sample.unchecked"),
                                                implement<draw_next>("draw_next")});

}  // namespace bark_accel
