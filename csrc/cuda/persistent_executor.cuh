// Launches a kernel whose blocks wait for each other: one on each multiprocessor, with all of its shared
// memory.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"
#include "persistent_step.cuh"

namespace bark_accel::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    persistent_entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(DeviceContext{}, params);
}

struct PersistentExecutor {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <class Kernel>
  void launch_persistent(typename Kernel::Params params) {
    int device = 0, multiprocessors = 0, resident = 0, most_bytes = 0, major = 0;
    note(cudaGetDevice(&device));
    note(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    note(cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    note(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaFuncAttributes built{};
    note(cudaFuncGetAttributes(&built, persistent_entry<Kernel>));
    most_bytes -= int(built.sharedSizeBytes);
    const bool has_ring = major >= 8;  // DeviceContext::kCopies of the code that runs there
    if (has_ring) params = Kernel::with_longest_ring(params, most_bytes);
    const size_t shared_bytes = size_t(params.shared_bytes);
    // A limit for all launches of the kernel, which another thread may be about to do with a larger model.
    note(cudaFuncSetAttribute(persistent_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most_bytes));
    note(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, persistent_entry<Kernel>, Kernel::kThreads,
                                                       shared_bytes));
    if (resident == 0 || (has_ring && params.ring_depth == 0)) note(cudaErrorCooperativeLaunchTooLarge);
    if (error != cudaSuccess) return;
    params.blocks = multiprocessors;
    note(cudaMemsetAsync(params.arrived, 0, sizeof *params.arrived, stream));
    cudaLaunchAttribute all_at_once{};
    all_at_once.id = cudaLaunchAttributeCooperative;
    all_at_once.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(params.blocks));
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &all_at_once;
    config.numAttrs = 1;
    note(cudaLaunchKernelEx(&config, persistent_entry<Kernel>, params));
  }

 private:
  void note(cudaError_t status) {
    if (error == cudaSuccess) error = status;
  }
};

}  // namespace bark_accel::cuda
