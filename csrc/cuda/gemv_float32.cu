#include "device_executor.cuh"

namespace bark_accel::cuda {

template void launch_gemv_of<float>(DeviceExecutor&, const GemvParams&, bool);

}  // namespace bark_accel::cuda
