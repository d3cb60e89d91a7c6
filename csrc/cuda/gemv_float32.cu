#include "device_executor.cuh"

namespace bark_accel::cuda {

template void launch_gemv_of<float>(DeviceExecutor&, const GemvParams&);

}  // namespace bark_accel::cuda
