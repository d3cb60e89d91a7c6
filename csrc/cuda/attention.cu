#include "device_executor.cuh"

namespace bark_accel::cuda {

cudaError_t launch_attention_split(const AttentionSplitParams& params, DType source, DType cache,
                                   cudaStream_t stream) {
  if (source != cache && source != DType::kFloat32) return cudaErrorInvalidValue;
  DeviceExecutor executor{stream};
  launch_attention_split(executor, params, source, cache);
  return executor.error;
}

cudaError_t launch_attention_combine(const AttentionCombineParams& params, DType out, cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_attention_combine(executor, params, out);
  return executor.error;
}

}  // namespace bark_accel::cuda
