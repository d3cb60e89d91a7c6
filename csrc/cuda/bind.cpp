// The ops on CUDA tensors: Tensor -> launcher, on the current stream of the tensors' device. Free of torch's
// CUDA headers, so that it builds with a torch without CUDA as well; stream and device go through c10's guard
// registry.
//
// What only a look at device memory could refuse is not refused here, for it would wait for the device at
// every token: decode_step and static_cache_attention give NaN for ids and lengths that do not fit, and write
// nothing to the cache; rules of the samplers are read as they are. The samplers, which refuse NaN, do look
// at their result, except while a graph is being captured: then an id is minus the SampleStatus.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/le.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "../attention_inputs.h"
#include "../decode_inputs.h"
#include "../embedding_inputs.h"
#include "../sample_inputs.h"
#include "bind.h"
#include "launch.h"

namespace bark_accel {
namespace {

cudaStream_t current_stream(at::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return static_cast<cudaStream_t>(guard.getStreamNativeHandle(guard.getStream(device)));
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  TORCH_CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess,
              "bark_accel: cudaStreamIsCapturing failed");
  return status != cudaStreamCaptureStatusNone;
}

void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

at::Tensor sample_rows(const char* op, const SampleParams& sample, const SampleRules& rules,
                       const at::Tensor& logits) {
  const c10::DeviceGuard guard(logits.device());
  const cudaStream_t stream = current_stream(logits.device());
  at::Tensor out = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  check_launch(op, cuda::launch_fused_sample({sample, rules, logits.size(0), ids}, stream));
  if (!is_capturing(stream)) {
    const at::Tensor on_host = out.cpu();
    sample_inputs::raise_bad_rows(op, on_host.const_data_ptr<int64_t>(), on_host.size(0));
  }
  return out;
}

at::Tensor fused_sample(const at::Tensor& logits, const std::optional<at::Tensor>& noise, int64_t first_id,
                        const at::Tensor& allowed, const std::optional<at::Tensor>& min_eos_p,
                        const std::optional<at::Tensor>& temperature, const std::optional<at::Tensor>& top_k,
                        const std::optional<at::Tensor>& top_p, bool renormalize) {
  const char* op = "fused_sample";
  SampleParams p = sample_inputs::checked_params(op, logits, first_id, renormalize);
  const SampleRules rules =
      sample_inputs::read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  if (noise) {
    sample_inputs::check_noise(op, *noise, logits, first_id);
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
  SampleParams p = sample_inputs::checked_params(op, logits, first_id, renormalize);
  const SampleRules rules =
      sample_inputs::read_rules(op, {allowed, min_eos_p, temperature, top_k, top_p}, logits);
  sample_inputs::check_vocab_size(op, vocab_size, first_id, logits);
  BARK_CHECK(!generator || !generator->defined() || generator->device() == logits.device(), op,
             "expected a generator on the ", logits.device(), ", got ", generator->device());
  const at::Tensor noise =
      at::empty({logits.size(0), vocab_size}, logits.options().dtype(at::kFloat)).exponential_(1, generator);
  p.noise = noise.const_data_ptr<float>();
  p.noise_stride = vocab_size;
  return sample_rows(op, p, rules, logits);
}

at::Tensor codebook_embedding_sum(const at::Tensor& codes, at::TensorList tables,
                                  const at::Tensor& positions) {
  using namespace embedding_inputs;
  check_inputs(codes, tables, positions);
  static_assert(kMaxTables == cuda::kMostTables);
  const c10::DeviceGuard guard(codes.device());
  const cudaStream_t stream = current_stream(codes.device());
  cuda::CodebookEmbeddingSumParams p{};
  p.codes = codes.const_data_ptr();
  p.codes_are_int64 = codes.scalar_type() == at::kLong;
  for (int64_t i = 0; i < 3; ++i) p.codes_strides[i] = codes.stride(i);
  p.batch = codes.size(0);
  p.frames = codes.size(1);
  p.tables_count = int64_t(tables.size());
  p.vocabulary = tables[0].size(0);
  p.width = positions.size(1);
  for (size_t i = 0; i < tables.size(); ++i) {
    p.tables[i] = tables[i].const_data_ptr();
    p.table_strides[i] = tables[i].stride(0);
  }
  p.positions = positions.const_data_ptr();
  p.position_stride = positions.stride(0);
  at::Tensor out = at::empty({p.batch, p.frames, p.width}, positions.options().dtype(at::kFloat));
  at::Tensor bad = at::empty({p.batch, p.frames}, codes.options().dtype(at::kInt));
  p.out = out.mutable_data_ptr<float>();
  p.bad = bad.mutable_data_ptr<int32_t>();
  check_launch(kOp, cuda::launch_codebook_embedding_sum(p, checked_dtype(kOp, "tables", tables[0]), stream));
  if (is_capturing(stream)) return out;
  const at::Tensor found = bad.cpu();
  const int32_t* codebook = found.const_data_ptr<int32_t>();
  for (int64_t row = 0; row < found.numel(); ++row) {
    BARK_CHECK(
        codebook[row] < 0, kOp, "expected codes in [0, ", p.vocabulary, "), got ",
        codes.select(0, row / p.frames).select(0, row % p.frames).select(0, codebook[row]).item<int64_t>(),
        " in codebook ", codebook[row], ", frame ", row % p.frames, ", batch row ", row / p.frames);
  }
  return out;
}

// Appends, then torch's own attention: for prompts, where matrix products win and the host knows the length.
// Of rows that start at one place.
void attend_with_torch(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       at::Tensor key_cache, at::Tensor value_cache, int64_t start, at::Tensor out) {
  const int64_t tokens = query.size(1), end = start + tokens;
  key_cache.narrow(2, start, tokens).copy_(key.transpose(1, 2));
  value_cache.narrow(2, start, tokens).copy_(value.transpose(1, 2));
  std::optional<at::Tensor> mask;
  if (start > 0) {
    const at::Tensor seen = at::arange(end, query.options().dtype(at::kLong));
    mask = at::le(seen.unsqueeze(0), seen.narrow(0, start, tokens).unsqueeze(1));
  }
  const at::Tensor attended =
      at::scaled_dot_product_attention(query.transpose(1, 2), key_cache.narrow(2, 0, end),
                                       value_cache.narrow(2, 0, end), mask, 0.0, start == 0);
  out.copy_(attended.transpose(1, 2).flatten(2));
}

void attend_with_kernels(const AttentionParams& a, const at::Tensor& lengths, int64_t capacity,
                         at::Tensor& out) {
  const cudaStream_t stream = current_stream(out.device());
  cuda::AttentionSplitParams p{};
  p.query = a.query;
  p.key = a.key;
  p.value = a.value;
  p.cache.keys = a.key_cache;
  p.cache.values = a.value_cache;
  for (int i = 0; i < 3; ++i) {
    p.query_strides[i] = a.query_strides[i];
    p.key_strides[i] = a.key_strides[i];
    p.value_strides[i] = a.value_strides[i];
    p.cache.key_strides[i] = a.key_cache_strides[i];
    p.cache.value_strides[i] = a.value_cache_strides[i];
  }
  p.lengths = lengths.const_data_ptr<int64_t>();
  p.batch = a.batch;
  p.tokens = a.tokens;
  p.heads = a.heads;
  p.head_dim = a.head_dim;
  p.capacity = capacity;
  p.splits = cuda::attention_splits(a.batch, a.heads, capacity);
  p.aligned = cuda::cache_aligned(p.cache, out.element_size());
  const int64_t rows = a.batch * a.tokens * a.heads;
  const at::Tensor scratch = at::empty({rows * p.splits * (a.head_dim + 2)}, out.options().dtype(at::kFloat));
  p.shares = scratch.mutable_data_ptr<float>();
  p.stats = p.shares + rows * p.splits * a.head_dim;
  check_launch(attention_inputs::kOp, cuda::launch_attention_split(p, a.dtype, a.dtype, stream));
  check_launch(attention_inputs::kOp,
               cuda::launch_attention_combine(
                   {p.shares, p.stats, rows, a.head_dim, p.splits, out.mutable_data_ptr()}, a.dtype, stream));
}

at::Tensor static_cache_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  at::Tensor& key_cache, at::Tensor& value_cache, const at::Tensor& length) {
  const AttentionParams p = attention_inputs::read(query, key, value, key_cache, value_cache, length);
  const c10::DeviceGuard guard(query.device());
  at::Tensor out = at::empty({p.batch, p.tokens, p.heads * p.head_dim}, query.options());
  if (out.numel() == 0) return out;
  if (p.tokens <= cuda::kMostTokens && p.head_dim <= cuda::kMostHeadSize) {
    attend_with_kernels(p, length.contiguous(), key_cache.size(2), out);
    return out;
  }
  TORCH_CHECK(!is_capturing(current_stream(query.device())), attention_inputs::kOp, ": expected at most ",
              cuda::kMostTokens, " tokens and a head size of at most ", cuda::kMostHeadSize,
              " while a CUDA graph is being captured, got ", p.tokens, " and ", p.head_dim);
  const at::Tensor lengths = length.cpu().contiguous();
  const int64_t* starts = lengths.const_data_ptr<int64_t>();
  attention_inputs::check_room(starts, p.batch, p.tokens, key_cache.size(2));
  const bool level = std::all_of(starts, starts + p.batch, [&](int64_t start) { return start == starts[0]; });
  const int64_t rows = level ? p.batch : 1;
  for (int64_t row = 0; row < p.batch; row += rows) {
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, row, rows); };
    if (starts[row] < 0) {
      part(out).fill_(std::numeric_limits<float>::quiet_NaN());
    } else {
      attend_with_torch(part(query), part(key), part(value), part(key_cache), part(value_cache), starts[row],
                        part(out));
    }
  }
  return out;
}

at::Tensor decode_step(const at::Tensor& ids, const at::Tensor& token_table, const at::Tensor& positions,
                       const decode_inputs::Weights& weights, at::ArrayRef<double> eps,
                       const at::Tensor& head, const std::optional<at::Tensor>& head_scales,
                       int64_t num_heads, at::Tensor& key_cache, at::Tensor& value_cache,
                       const at::Tensor& length) {
  const c10::DeviceGuard guard(key_cache.device());
  decode_inputs::DecodeInputs in =
      decode_inputs::read(ids, token_table, positions, weights, eps, head, head_scales, num_heads, key_cache,
                          value_cache, length, key_cache.device());
  BARK_CHECK(in.params.tokens <= cuda::kMostTokens, decode_inputs::kOp, "expected at most ",
             cuda::kMostTokens, " tokens a row on CUDA, got ", in.params.tokens);
  BARK_CHECK(in.params.width / in.params.heads <= cuda::kMostHeadSize, decode_inputs::kOp,
             "expected a head size of at most ", cuda::kMostHeadSize, " on CUDA, got ",
             in.params.width / in.params.heads);
  if (in.logits.numel() == 0) return in.logits;
  cuda::DecodeStepParams step{};
  step.decode = in.params;
  step.capacity = in.capacity;
  step.vocabulary = in.vocabulary;
  step.positions_count = in.positions_count;
  step.splits = cuda::attention_splits(in.params.batch, in.params.heads, in.capacity);
  const at::Tensor scratch = at::empty({cuda::decode_scratch(step).floats}, in.logits.options());
  step.decode.scratch = scratch.mutable_data_ptr<float>();
  check_launch(decode_inputs::kOp, cuda::launch_decode_step(step, current_stream(key_cache.device())));
  return in.logits;
}

}  // namespace

uintptr_t cuda_stream(int64_t device) {
  return reinterpret_cast<uintptr_t>(current_stream({at::kCUDA, at::DeviceIndex(device)}));
}

void set_dependent_launch(bool on) { cuda::set_dependent_launch(on); }

TORCH_LIBRARY_IMPL(bark_accel, CUDA, m) {
  m.impl("fused_sample", fused_sample);
  m.impl("fused_multinomial", fused_multinomial);
  m.impl("codebook_embedding_sum", codebook_embedding_sum);
  m.impl("static_cache_attention", static_cache_attention);
  m.impl("decode_step", decode_step);
}

}  // namespace bark_accel
