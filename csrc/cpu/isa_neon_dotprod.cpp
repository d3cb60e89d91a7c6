#define BARK_ACCEL_ARM
#define BARK_NEON
#define BARK_ACCEL_ISA neon_dotprod
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& neon_dotprod_kernels() { return neon_dotprod::kTable; }
}  // namespace bark_accel
