#include "persistent_executor.cuh"

namespace bark_accel::cuda {

// Compiled in a file each.
extern template void launch_persistent_of<float, float>(PersistentExecutor&, const DecodeStepParams&);
extern template void launch_persistent_of<Half, Half>(PersistentExecutor&, const DecodeStepParams&);
extern template void launch_persistent_of<BFloat16, BFloat16>(PersistentExecutor&, const DecodeStepParams&);
extern template void launch_persistent_of<int8_t, Half>(PersistentExecutor&, const DecodeStepParams&);

cudaError_t launch_persistent_step(const DecodeStepParams& params, cudaStream_t stream) {
  PersistentExecutor executor{stream};
  launch_persistent(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
