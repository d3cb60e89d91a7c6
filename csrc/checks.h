// Argument checks of the ops. Messages read "op: what was expected, what came". Inputs that need gradients
// are refused in Python: the stable interface does not tell.
#pragma once

#include <utility>

#include "boxed.h"
#include "kernels/params.h"

namespace bark_accel {

// Throws what is a ValueError in Python, as the pure-torch references raise: torch passes
// std::invalid_argument on as one up to 2.14; later it makes a RuntimeError of everything, and Python asks
// for the message.
[[noreturn]] void refuse(const std::string& message);
const char* last_refusal();  // of this thread; "" before the first

#define BARK_CHECK(condition, op, ...)                                                   \
  do {                                                                                   \
    if (!(condition)) ::bark_accel::refuse(::bark_accel::joined(op, ": ", __VA_ARGS__)); \
  } while (false)

inline DType checked_dtype(const char* op, const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  BARK_CHECK(type == kFloat || type == kHalf || type == kBFloat16, op, "expected ", name,
             " of dtype float32, float16 or bfloat16, got ", type);
  return type == kHalf ? DType::kFloat16 : type == kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim, const char* shape) {
  BARK_CHECK(t.dim() == dim, op, "expected ", name, " of shape ", shape, ", got ", t.sizes());
}

inline void check_sizes(const char* op, const char* name, const Tensor& t, Sizes sizes) {
  BARK_CHECK(t.sizes() == sizes, op, "expected ", name, " of shape ", sizes, ", got ", t.sizes());
}

inline void check_unit_stride(const char* op, const char* name, const Tensor& t) {
  BARK_CHECK(t.stride(-1) == 1 || t.size(-1) <= 1, op, "expected ", name,
             " with unit stride in its last dimension, got strides ", t.strides());
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
  const std::vector<int64_t> wanted = row_major(t.sizes());
  bool same = true;
  for (int64_t i = 0; i < t.dim(); ++i) same &= t.size(i) == 1 || t.stride(i) == wanted[i];
  BARK_CHECK(same || t.numel() == 0, op, "expected contiguous ", name, ", got strides ", t.strides());
}

inline void check_device(const char* op, const char* name, const Tensor& t, Device device) {
  BARK_CHECK(t.device() == device, op, "expected ", name, " on the ", device, ", got ", t.device());
}

inline void check_cpu(const char* op, const char* name, const Tensor& t) { check_device(op, name, t, kCPU); }

inline void check_same_dtype(const char* op, const char* name, const Tensor& t, const char* as,
                             const Tensor& other) {
  BARK_CHECK(t.scalar_type() == other.scalar_type(), op, "expected ", name, " of dtype ", other.scalar_type(),
             " like ", as, ", got ", t.scalar_type());
}

// Valid cache entries of each row.
inline void check_lengths(const char* op, const Tensor& length, int64_t rows, Device device) {
  check_device(op, "length", length, device);
  BARK_CHECK(length.scalar_type() == kLong && length.dim() == 1 && length.size(0) == rows, op,
             "expected length as an int64 tensor of shape [", rows, "] (one a row), got ",
             length.scalar_type(), " of shape ", length.sizes());
}

// Bytes from the first element to behind the last, of a tensor that has any.
inline int64_t span_bytes(const Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return (last + 1) * t.element_size();
}

inline bool is_gapless(const Tensor& t) { return span_bytes(t) == t.numel() * t.element_size(); }

// Between slices of one buffer that alternate only a common beginning is found: looking at every element
// would take too long.
inline bool overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto *first = a.const_data_ptr<char>(), *second = b.const_data_ptr<char>();
  if (!is_gapless(a) || !is_gapless(b)) return first == second;
  return first < second + span_bytes(b) && second < first + span_bytes(a);
}

// Caches that an op writes to: neither may hold an element twice, nor one of the other's.
inline void check_no_overlap(const char* op, const Tensor& key_cache, const Tensor& value_cache) {
  for (const auto& [name, cache] :
       {std::pair{"key_cache", &key_cache}, std::pair{"value_cache", &value_cache}}) {
    bool repeats = false;
    for (int64_t i = 0; i < cache->dim(); ++i) repeats |= cache->stride(i) == 0 && cache->size(i) > 1;
    BARK_CHECK(!repeats, op, "expected ", name, " without elements that share memory, got strides ",
               cache->strides());
  }
  BARK_CHECK(!overlap(key_cache, value_cache), op,
             "expected key_cache and value_cache in separate memory, got overlapping ones");
}

}  // namespace bark_accel
