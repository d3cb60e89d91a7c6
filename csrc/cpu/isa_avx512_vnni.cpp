#define BARK_ACCEL_X86
#define BARK_ACCEL_ISA avx512_vnni
#include "../kernels/table.h"

namespace bark_accel {
const KernelTable& avx512_vnni_kernels() { return avx512_vnni::kTable; }
}  // namespace bark_accel
