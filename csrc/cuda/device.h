// The device and stream that an op of bind.cpp and bind_draws.cpp launches on.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "../checks.h"

namespace bark_accel {

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
inline GetStream find_get_stream() {
  void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const found = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  RUNTIME_CHECK(found, "bark_accel: expected a torch with CUDA");
  return reinterpret_cast<GetStream>(found);
}

inline cudaStream_t current_stream(Device device) {
  static const GetStream get_stream = find_get_stream();
  void* stream = nullptr;
  check_torch(get_stream(device.index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Tensor to_host(const Tensor& t) {
  Tensor copy = empty(t.sizes(), t.scalar_type());
  check_torch(aoti_torch_copy_(copy.handle(), t.handle(), 0));
  return copy;
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  RUNTIME_CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess,
                "bark_accel: cudaStreamIsCapturing failed");
  return status != cudaStreamCaptureStatusNone;
}

inline void check_launch(const char* op, cudaError_t error) {
  RUNTIME_CHECK(error == cudaSuccess, op, ": the CUDA launch failed: ", cudaGetErrorString(error));
}

}  // namespace bark_accel
