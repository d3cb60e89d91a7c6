// Launches kernel bodies on the device; the emulator of tests/cpp has the same interface.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"

namespace bark_accel::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(DeviceContext{}, params);
}

struct DeviceExecutor {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;  // the first one; nothing is launched after it

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    const Grid grid = Kernel::grid(params);
    if (error != cudaSuccess || grid.blocks == 0) return;
    if (grid.blocks > INT32_MAX) {
      error = cudaErrorInvalidConfiguration;
      return;
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(grid.blocks));
    config.blockDim = dim3(unsigned(grid.threads));
    config.dynamicSmemBytes = size_t(grid.shared_bytes);
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = dependent_launch() ? 1 : 0;
    error = cudaLaunchKernelEx(&config, entry<Kernel>, params);
  }
};

}  // namespace bark_accel::cuda
