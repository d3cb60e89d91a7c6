// Weights times a few rows of activations, by the way that is fastest for so many.
#pragma once

#include "int8_batch.h"

namespace bark_accel::BARK_ACCEL_ISA {

// y[r, n] = w[n] . x[r] for n in [begin, end), to the bit the same by either way.
inline void product(const MatrixView& m, const Activations& a, int64_t begin, int64_t end, Result result) {
  if (m.dtype == DType::kInt8 && a.rows >= kLeastBatch) begin = int8_blocks(m, a, begin, end, result);
  gemv(m, a, begin, end, result);
}

}  // namespace bark_accel::BARK_ACCEL_ISA
