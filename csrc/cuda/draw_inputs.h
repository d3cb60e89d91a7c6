// What a draw on a GPU moves on, and the noise of torch's generators there: checked, as plain structs.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "../checks.h"
#include "launch.h"

namespace bark_accel::draw_inputs {

inline int device_attribute(cudaDeviceAttr attribute, Device device) {
  int value = 0;
  RUNTIME_CHECK(cudaDeviceGetAttribute(&value, attribute, device.index) == cudaSuccess,
                "bark_accel: cudaDeviceGetAttribute failed");
  return value;
}

// Threads that torch's distribution kernels launch for as many entries (DistributionTemplates.h).
inline uint32_t torch_lanes(int64_t entries, Device device) {
  constexpr int64_t kBlock = 256;
  const int64_t most = int64_t(device_attribute(cudaDevAttrMultiProcessorCount, device)) *
                       (device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device) / kBlock);
  return uint32_t(kBlock * std::min(most, (entries + kBlock - 1) / kBlock));
}

inline int64_t* counter(const char* op, const char* name, Tensor& t, int64_t numel, Device device) {
  check_device(op, name, t, device);
  BARK_CHECK(t.scalar_type() == kLong && t.numel() == numel && is_gapless(t), op, "expected ", name, " as ",
             numel, " gapless int64, got ", t.scalar_type(), " of shape ", t.sizes());
  return t.mutable_data_ptr<int64_t>();
}

inline cuda::NextStep read_next(const char* op, Tensor& ids, Tensor& drawn, Tensor& count, Tensor& length,
                                int64_t rows, Device device) {
  check_dim(op, "drawn", drawn, 2, "[room, N]");
  cuda::NextStep next{};
  next.room = drawn.size(0);
  next.ids = counter(op, "ids", ids, rows, device);
  next.drawn = counter(op, "drawn", drawn, next.room * rows, device);
  next.count = counter(op, "count", count, rows, device);
  next.length = counter(op, "length", length, rows, device);
  return next;
}

// `philox`: seed and offset, int64.
inline cuda::PhiloxNoise read_philox(const char* op, const Tensor& philox, const cuda::NextStep& next,
                                     int64_t rows, int64_t vocab_size, Device device) {
  check_device(op, "philox", philox, device);
  BARK_CHECK(philox.scalar_type() == kLong && philox.numel() == 2 && is_gapless(philox), op,
             "expected philox as int64 (seed, offset), got ", philox.scalar_type(), " of shape ",
             philox.sizes());
  const int64_t entries = rows * vocab_size;
  BARK_CHECK(entries <= INT32_MAX, op, "expected fewer than 2^31 entries of noise, got ", entries);
  return {philox.const_data_ptr<int64_t>(), next.count, vocab_size, uint32_t(entries),
          torch_lanes(entries, device)};
}

}  // namespace bark_accel::draw_inputs
