#define BARK_ACCEL_X86
#define BARK_ACCEL_ISA avx512
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& avx512_kernels() { return avx512::kTable; }
}  // namespace bark_accel
