// Argument checks of the ops. Messages read "op: what was expected, what came".
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <utility>

#include "kernels/params.h"

namespace bark_accel {

// ValueError in Python, as the pure-torch references raise.
#define BARK_CHECK(condition, op, ...) TORCH_CHECK_VALUE(condition, op, ": ", __VA_ARGS__)

inline DType checked_dtype(const char* op, const char* name, const at::Tensor& t) {
  const auto type = t.scalar_type();
  BARK_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, op, "expected ", name,
             " of dtype float32, float16 or bfloat16, got ", type);
  return type == at::kHalf ? DType::kFloat16 : type == at::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

inline void check_dim(const char* op, const char* name, const at::Tensor& t, int64_t dim, const char* shape) {
  BARK_CHECK(t.dim() == dim, op, "expected ", name, " of shape ", shape, ", got ", t.sizes());
}

inline void check_sizes(const char* op, const char* name, const at::Tensor& t, at::IntArrayRef sizes) {
  BARK_CHECK(t.sizes() == sizes, op, "expected ", name, " of shape ", sizes, ", got ", t.sizes());
}

inline void check_unit_stride(const char* op, const char* name, const at::Tensor& t) {
  BARK_CHECK(t.stride(-1) == 1 || t.size(-1) <= 1, op, "expected ", name,
             " with unit stride in its last dimension, got strides ", t.strides());
}

inline void check_device(const char* op, const char* name, const at::Tensor& t, at::Device device) {
  BARK_CHECK(t.device() == device, op, "expected ", name, " on the ", device, ", got ", t.device());
}

inline void check_cpu(const char* op, const char* name, const at::Tensor& t) {
  check_device(op, name, t, at::kCPU);
}

inline void check_same_dtype(const char* op, const char* name, const at::Tensor& t, const char* as,
                             const at::Tensor& other) {
  BARK_CHECK(t.scalar_type() == other.scalar_type(), op, "expected ", name, " of dtype ", other.scalar_type(),
             " like ", as, ", got ", t.scalar_type());
}

inline void check_no_grad(const char* op, const char* name, const at::Tensor& t) {
  BARK_CHECK(!(at::GradMode::is_enabled() && t.requires_grad()), op,
             "expected torch.no_grad() or inputs that need no gradient (the op has no backward), got ", name,
             " with requires_grad=True");
}

// Valid cache entries of each row.
inline void check_lengths(const char* op, const at::Tensor& length, int64_t rows, at::Device device) {
  check_device(op, "length", length, device);
  BARK_CHECK(length.scalar_type() == at::kLong && length.dim() == 1 && length.size(0) == rows, op,
             "expected length as an int64 tensor of shape [", rows, "] (one a row), got ",
             length.scalar_type(), " of shape ", length.sizes());
}

// Caches that an op writes to: neither may hold an element twice, nor one of the other's.
inline void check_no_overlap(const char* op, const at::Tensor& key_cache, const at::Tensor& value_cache) {
  for (const auto& [name, cache] :
       {std::pair{"key_cache", &key_cache}, std::pair{"value_cache", &value_cache}}) {
    BARK_CHECK(at::has_internal_overlap(*cache) != at::MemOverlap::Yes, op, "expected ", name,
               " without elements that share memory, got strides ", cache->strides());
  }
  const auto overlap = at::get_overlap_status(key_cache, value_cache);
  // For slices torch does not answer: at least those that begin at one place are found.
  const bool same = key_cache.numel() > 0 && key_cache.const_data_ptr() == value_cache.const_data_ptr();
  BARK_CHECK(!same && overlap != at::MemOverlapStatus::Full && overlap != at::MemOverlapStatus::Partial, op,
             "expected key_cache and value_cache in separate memory, got overlapping ones");
}

}  // namespace bark_accel
