// The ops on CUDA tensors: Tensor -> launcher, on the current stream of the tensors' device. Without torch's
// CUDA headers, so that it builds and loads with a torch without CUDA as well.
//
// What only a look at device memory could refuse is not refused here, for it would wait for the device at
// every token: decode_step and static_cache_attention give NaN for ids and lengths that do not fit, and write
// nothing to the cache; rules of the samplers are read as they are. The samplers, which refuse NaN, do look
// at their result, except while a graph is being captured: then an id is minus the SampleStatus.

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "../attention_inputs.h"
#include "../decode_inputs.h"
#include "../embedding_inputs.h"
#include "../sample_inputs.h"
#include "bind.h"
#include "launch.h"

namespace bark_accel {
namespace {

// Makes a device the current one, as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device) { check_torch(aoti_torch_create_device_guard(device.index, &guard_)); }
  ~DeviceGuard() { aoti_torch_delete_device_guard(guard_); }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle guard_ = nullptr;
};

using GetStream = AOTITorchError (*)(int32_t device, void** stream);

// Part of the stable interface, but of a library that only a torch with CUDA has.
GetStream find_get_stream() {
  void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const found = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  RUNTIME_CHECK(found, "bark_accel: expected a torch with CUDA");
  return reinterpret_cast<GetStream>(found);
}

cudaStream_t current_stream(Device device) {
  static const GetStream get_stream = find_get_stream();
  void* stream = nullptr;
  check_torch(get_stream(device.index, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor to_host(const Tensor& t) {
  Tensor copy = empty(t.sizes(), t.scalar_type());
  check_torch(aoti_torch_copy_(copy.handle(), t.handle(), 0));
  return copy;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  RUNTIME_CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess,
                "bark_accel: cudaStreamIsCapturing failed");
  return status != cudaStreamCaptureStatusNone;
}

void check_launch(const char* op, cudaError_t error) {
  RUNTIME_CHECK(error == cudaSuccess, op, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

Tensor sample_rows(const char* op, cuda::FusedSampleParams p, const Tensor& logits) {
  BARK_CHECK(logits.size(1) <= INT32_MAX, op, "expected logits of fewer than 2^31 ids, got ", logits.size(1));
  const DeviceGuard guard(logits.device());
  const cudaStream_t stream = current_stream(logits.device());
  Tensor out = empty({logits.size(0)}, kLong, logits.device());
  p.rows = logits.size(0);
  p.ids = out.mutable_data_ptr<int64_t>();
  check_launch(op, cuda::launch_fused_sample(p, stream));
  if (!is_capturing(stream)) {
    const Tensor on_host = to_host(out);
    sample_inputs::raise_bad_rows(op, on_host.const_data_ptr<int64_t>(), on_host.size(0));
  }
  return out;
}

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
  return sample_rows(op, sample, logits);
}

int device_attribute(cudaDeviceAttr attribute, Device device) {
  int value = 0;
  RUNTIME_CHECK(cudaDeviceGetAttribute(&value, attribute, device.index) == cudaSuccess,
                "bark_accel: cudaDeviceGetAttribute failed");
  return value;
}

// Threads that torch's distribution kernels launch for as many entries (DistributionTemplates.h).
uint32_t torch_lanes(int64_t entries, Device device) {
  constexpr int64_t kBlock = 256;
  const int64_t most = int64_t(device_attribute(cudaDevAttrMultiProcessorCount, device)) *
                       (device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device) / kBlock);
  return uint32_t(kBlock * std::min(most, (entries + kBlock - 1) / kBlock));
}

int64_t* counter(const char* op, const char* name, Tensor& t, int64_t numel, Device device) {
  check_device(op, name, t, device);
  BARK_CHECK(t.scalar_type() == kLong && t.numel() == numel && is_gapless(t), op, "expected ", name, " as ",
             numel, " gapless int64, got ", t.scalar_type(), " of shape ", t.sizes());
  return t.mutable_data_ptr<int64_t>();
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
  const Device device = logits.device();
  check_dim(op, "drawn", drawn, 2, "[room, N]");
  p.next.room = drawn.size(0);
  p.next.ids = counter(op, "ids", ids, rows, device);
  p.next.drawn = counter(op, "drawn", drawn, p.next.room * rows, device);
  p.next.count = counter(op, "count", count, rows, device);
  p.next.length = counter(op, "length", length, rows, device);
  if (philox) {
    check_device(op, "philox", *philox, device);
    BARK_CHECK(philox->scalar_type() == kLong && philox->numel() == 2 && is_gapless(*philox), op,
               "expected philox as int64 (seed, offset), got ", philox->scalar_type(), " of shape ",
               philox->sizes());
    const int64_t entries = rows * vocab_size;
    BARK_CHECK(entries <= INT32_MAX, op, "expected fewer than 2^31 entries of noise, got ", entries);
    p.philox = {philox->const_data_ptr<int64_t>(), p.next.count, vocab_size, uint32_t(entries),
                torch_lanes(entries, device)};
  }
  return sample_rows(op, p, logits);
}

Tensor codebook_embedding_sum(const Tensor& codes, const TensorList& tables, const Tensor& positions) {
  using namespace embedding_inputs;
  check_inputs(codes, tables, positions);
  static_assert(kMaxTables == cuda::kMostTables);
  const DeviceGuard guard(codes.device());
  const cudaStream_t stream = current_stream(codes.device());
  cuda::CodebookEmbeddingSumParams p{};
  p.codes = codes.const_data_ptr();
  p.codes_are_int64 = codes.scalar_type() == kLong;
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
  Tensor out = empty({p.batch, p.frames, p.width}, kFloat, positions.device());
  p.out = out.mutable_data_ptr<float>();
  check_launch(kOp, cuda::launch_codebook_embedding_sum(p, checked_dtype(kOp, "tables", tables[0]), stream));
  return out;
}

Tensor narrow(const Tensor& t, int64_t dim, int64_t start, int64_t length) {
  return call_torch("aten::narrow", "", t, dim, start, length);
}

// [B, T, H, D] to [B, H, T, D] and back.
Tensor swap_heads(const Tensor& t) { return call_torch("aten::transpose", "int", t, int64_t(1), int64_t(2)); }

void copy_to(const Tensor& to, const Tensor& from) {
  check_torch(aoti_torch_copy_(to.handle(), from.handle(), 0));
}

// [tokens, start + tokens]: what each of the tokens from `start` on sees.
Tensor causal_mask(int64_t start, int64_t tokens, Device device) {
  const int64_t end = start + tokens;
  const Tensor on_host = empty({tokens, end}, kBool), mask = empty({tokens, end}, kBool, device);
  bool* seen = on_host.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < tokens * end; ++i) seen[i] = i % end <= start + i / end;
  copy_to(mask, on_host);
  return mask;
}

// Appends, then torch's own attention: for prompts, where matrix products win and the host knows the length.
// Of rows that start at one place.
void attend_with_torch(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& key_cache,
                       const Tensor& value_cache, int64_t start, const Tensor& out) {
  const int64_t tokens = query.size(1), end = start + tokens;
  copy_to(narrow(key_cache, 2, start, tokens), swap_heads(key));
  copy_to(narrow(value_cache, 2, start, tokens), swap_heads(value));
  std::optional<Tensor> mask;
  if (start > 0) mask = causal_mask(start, tokens, query.device());
  const Tensor attended =
      call_torch("aten::scaled_dot_product_attention", "", swap_heads(query), narrow(key_cache, 2, 0, end),
                 narrow(value_cache, 2, 0, end), mask, 0.0, start == 0, std::nullopt, false);
  copy_to(out, call_torch("aten::flatten", "using_ints", swap_heads(attended), int64_t(2), int64_t(-1)));
}

void attend_with_kernels(const AttentionParams& a, const Tensor& lengths, int64_t capacity, Tensor& out) {
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
  const Tensor scratch = empty({rows * p.splits * (a.head_dim + 2)}, kFloat, out.device());
  p.shares = scratch.mutable_data_ptr<float>();
  p.stats = p.shares + rows * p.splits * a.head_dim;
  check_launch(attention_inputs::kOp, cuda::launch_attention_split(p, a.dtype, a.dtype, stream));
  check_launch(attention_inputs::kOp,
               cuda::launch_attention_combine(
                   {p.shares, p.stats, rows, a.head_dim, p.splits, out.mutable_data_ptr()}, a.dtype, stream));
}

Tensor static_cache_attention(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& key_cache,
                              Tensor& value_cache, const Tensor& length) {
  const AttentionParams p = attention_inputs::read(query, key, value, key_cache, value_cache, length);
  const DeviceGuard guard(query.device());
  Tensor out = empty({p.batch, p.tokens, p.heads * p.head_dim}, query.scalar_type(), query.device());
  if (out.numel() == 0) return out;
  if (p.tokens <= cuda::kMostTokens && p.head_dim <= cuda::kMostHeadSize) {
    attend_with_kernels(p, contiguous(length), key_cache.size(2), out);
    return out;
  }
  RUNTIME_CHECK(!is_capturing(current_stream(query.device())), attention_inputs::kOp, ": expected at most ",
                cuda::kMostTokens, " tokens and a head size of at most ", cuda::kMostHeadSize,
                " while a CUDA graph is being captured, got ", p.tokens, " and ", p.head_dim);
  const Tensor lengths = to_host(length);
  const int64_t* starts = lengths.const_data_ptr<int64_t>();
  attention_inputs::check_room(starts, p.batch, p.tokens, key_cache.size(2));
  const bool level = std::all_of(starts, starts + p.batch, [&](int64_t start) { return start == starts[0]; });
  const int64_t rows = level ? p.batch : 1;
  for (int64_t row = 0; row < p.batch; row += rows) {
    const auto part = [&](const Tensor& t) { return narrow(t, 0, row, rows); };
    if (starts[row] < 0) {
      const int64_t bytes = p.tokens * p.heads * p.head_dim * out.element_size() * rows;
      // All bits set is NaN in every dtype.
      check_launch(attention_inputs::kOp, cudaMemsetAsync(out.mutable_data_ptr<char>() + row / rows * bytes,
                                                          0xff, bytes, current_stream(query.device())));
    } else {
      attend_with_torch(part(query), part(key), part(value), part(key_cache), part(value_cache), starts[row],
                        part(out));
    }
  }
  return out;
}

Tensor decode_step(const Tensor& ids, const Tensor& token_table, const Tensor& positions,
                   const decode_inputs::Weights& weights, const std::vector<double>& eps, const Tensor& head,
                   const std::optional<Tensor>& head_scales, int64_t num_heads, Tensor& key_cache,
                   Tensor& value_cache, const Tensor& length) {
  const DeviceGuard guard(key_cache.device());
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
  const Tensor scratch = empty({cuda::decode_scratch(step).floats}, kFloat, in.logits.device());
  step.decode.scratch = scratch.mutable_data_ptr<float>();
  check_launch(decode_inputs::kOp, cuda::launch_decode_step(step, current_stream(key_cache.device())));
  return in.logits;
}

}  // namespace

uintptr_t cuda_stream(int64_t device) {
  return reinterpret_cast<uintptr_t>(current_stream({kCUDA, int32_t(device)}));
}

void set_dependent_launch(bool on) { cuda::set_dependent_launch(on); }
void set_persistent_step(bool on) { cuda::set_persistent_step(on); }

const Implementations registered("CUDA",
                                 {implement<fused_sample>("fused_sample"), implement<draw_next>("draw_next"),
                                  implement<codebook_embedding_sum>("codebook_embedding_sum"),
                                  implement<static_cache_attention>("static_cache_attention"),
                                  implement<decode_step>("decode_step")});

}  // namespace bark_accel
