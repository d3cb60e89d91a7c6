#include "persistent_executor.cuh"

namespace bark_accel::cuda {

template void launch_persistent_of<BFloat16, BFloat16>(PersistentExecutor&, const DecodeStepParams&,
                                                       const TokenRun&);

}  // namespace bark_accel::cuda
