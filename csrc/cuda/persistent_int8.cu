#include "persistent_executor.cuh"

namespace bark_accel::cuda {

template void launch_persistent_of<int8_t, Half>(PersistentExecutor&, const DecodeStepParams&,
                                                 const TokenRun&);

}  // namespace bark_accel::cuda
