#include "device_executor.cuh"

namespace bark_accel::cuda {

cudaError_t launch_codebook_embedding_sum(const CodebookEmbeddingSumParams& params, DType tables,
                                          cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_codebook_embedding_sum(executor, params, tables);
  return executor.error;
}

}  // namespace bark_accel::cuda
