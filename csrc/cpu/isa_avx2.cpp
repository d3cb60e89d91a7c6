#define BARK_ACCEL_X86
#define BARK_ACCEL_ISA avx2
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& avx2_kernels() { return avx2::kTable; }
}  // namespace bark_accel
