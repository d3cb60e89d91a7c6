#define BARK_ACCEL_X86
#define BARK_ACCEL_ISA avx_vnni
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& avx_vnni_kernels() { return avx_vnni::kTable; }
}  // namespace bark_accel
