#include <atomic>

#include "device_executor.cuh"

namespace bark_accel::cuda {
namespace {

std::atomic<bool> wanted{true}, as_one_kernel{false};

int current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

// Of the current device; 0 where it cannot be told.
int capability() {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current_device());
  return major;
}

// The kernels of a step, each compiled in its own file.
struct StepExecutor {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  void note(cudaError_t status) {
    if (error == cudaSuccess) error = status;
  }
  void gemv(const GemvParams& p) { note(launch_gemv(p, stream)); }
  void attention(const AttentionSplitParams& p, DType cache) {
    note(launch_attention_split(p, DType::kFloat32, cache, stream));
  }
};

}  // namespace

void set_dependent_launch(bool on) { wanted.store(on, std::memory_order_relaxed); }
bool dependent_launch() { return wanted.load(std::memory_order_relaxed) && capability() >= 9; }

void set_persistent_step(bool on) { as_one_kernel.store(on, std::memory_order_relaxed); }

cudaError_t launch_decode_step(const DecodeStepParams& params, cudaStream_t stream) {
  if (as_one_kernel.load(std::memory_order_relaxed) && is_persistent(params) &&
      runs_all_blocks_at_once(current_device())) {
    return launch_persistent(params, {}, stream);
  }
  StepExecutor executor{stream};
  decode_step(executor, params);
  return executor.error;
}

}  // namespace bark_accel::cuda
