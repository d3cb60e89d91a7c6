#include "persistent_executor.cuh"

namespace bark_accel::cuda {

// Compiled in a file each.
extern template void launch_persistent_of<float, float>(PersistentExecutor&, const DecodeStepParams&,
                                                        const TokenRun&);
extern template void launch_persistent_of<Half, Half>(PersistentExecutor&, const DecodeStepParams&,
                                                      const TokenRun&);
extern template void launch_persistent_of<BFloat16, BFloat16>(PersistentExecutor&, const DecodeStepParams&,
                                                              const TokenRun&);
extern template void launch_persistent_of<int8_t, Half>(PersistentExecutor&, const DecodeStepParams&,
                                                        const TokenRun&);

cudaError_t launch_persistent(const DecodeStepParams& params, const TokenRun& run, cudaStream_t stream) {
  PersistentExecutor executor{stream};
  launch_persistent(executor, params, run);
  return executor.error;
}

bool runs_all_blocks_at_once(int device) {
  int can = 0;
  return cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, device) == cudaSuccess && can != 0;
}

}  // namespace bark_accel::cuda
