#include "device_executor.cuh"

namespace bark_accel::cuda {

cudaError_t launch_gemv(const GemvParams& params, cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_gemv(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
