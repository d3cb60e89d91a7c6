// The ops on CUDA tensors: Tensor -> launcher, on the current stream of the tensors' device. Without torch's
// CUDA headers, so that it builds and loads with a torch without CUDA as well.
//
// What only a look at device memory could refuse is not refused here, for it would wait for the device at
// every token: decode_step and static_cache_attention give NaN for ids and lengths that do not fit, and write
// nothing to the cache; rules of the samplers are read as they are. The samplers, which refuse NaN, do look
// at their result, except while a graph is being captured: then an id is minus the SampleStatus.

#include <algorithm>

#include "../attention_inputs.h"
#include "../decode_inputs.h"
#include "../embedding_inputs.h"
#include "bind.h"
#include "device.h"
#include "launch.h"

namespace bark_accel {
namespace {

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

const Implementations registered("CUDA", {implement<codebook_embedding_sum>("codebook_embedding_sum"),
                                          implement<static_cache_attention>("static_cache_attention"),
                                          implement<decode_step>("decode_step")});

}  // namespace bark_accel
