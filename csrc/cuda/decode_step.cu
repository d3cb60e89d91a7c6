#include <atomic>

#include "device_executor.cuh"

namespace bark_accel::cuda {
namespace {

std::atomic<bool> dependent{false};

// The kernels of a step, each compiled in its own file.
struct StepExecutor {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  void note(cudaError_t status) {
    if (error == cudaSuccess) error = status;
  }
  void embed(const EmbedParams& p, DType tables) { note(launch_embed(p, tables, stream)); }
  void gemv(const GemvParams& p) { note(launch_gemv(p, stream)); }
  void attention(const AttentionSplitParams& p, DType cache) {
    note(launch_attention_split(p, DType::kFloat32, cache, stream));
  }
  void combine(const AttentionCombineParams& p) {
    note(launch_attention_combine(p, DType::kFloat32, stream));
  }
};

}  // namespace

void set_dependent_launch(bool on) { dependent.store(on, std::memory_order_relaxed); }
bool dependent_launch() { return dependent.load(std::memory_order_relaxed); }

cudaError_t launch_embed(const EmbedParams& params, DType tables, cudaStream_t stream) {
  DeviceExecutor executor{stream};
  launch_embed(executor, params, tables);
  return executor.error;
}

cudaError_t launch_decode_step(const DecodeStepParams& params, cudaStream_t stream) {
  StepExecutor executor{stream};
  decode_step(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
