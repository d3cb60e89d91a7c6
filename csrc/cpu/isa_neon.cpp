#define BARK_ACCEL_ARM
#define BARK_NEON
#define BARK_ACCEL_ISA neon
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& neon_kernels() { return neon::kTable; }
}  // namespace bark_accel
