#define BARK_ACCEL_ISA generic
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& generic_kernels() { return generic::kTable; }
}  // namespace bark_accel
