#include "device_executor.cuh"

namespace bark_accel::cuda {

cudaError_t launch_fused_sample(const FusedSampleParams& params, cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_fused_sample(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
