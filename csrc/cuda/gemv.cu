#include "device_executor.cuh"

namespace bark_accel::cuda {

// Compiled in a file each.
extern template void launch_gemv_of<float>(DeviceExecutor&, const GemvParams&, bool);
extern template void launch_gemv_of<Half>(DeviceExecutor&, const GemvParams&, bool);
extern template void launch_gemv_of<BFloat16>(DeviceExecutor&, const GemvParams&, bool);
extern template void launch_gemv_of<int8_t>(DeviceExecutor&, const GemvParams&, bool);

cudaError_t launch_gemv(const GemvParams& params, cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_gemv(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
