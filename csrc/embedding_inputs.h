// The arguments of codebook_embedding_sum, checked, for any device.
#pragma once

#include "checks.h"

namespace bark_accel::embedding_inputs {

constexpr const char* kOp = "codebook_embedding_sum";
constexpr size_t kMaxTables = 32;

inline void check_inputs(const Tensor& codes, const TensorList& tables, const Tensor& positions) {
  check_dim(kOp, "codes", codes, 3, "[B, T, K]");
  BARK_CHECK(codes.scalar_type() == kLong || codes.scalar_type() == kInt, kOp,
             "expected codes of dtype int32 or int64, got ", codes.scalar_type());
  BARK_CHECK(!tables.empty() && tables.size() <= kMaxTables, kOp, "expected 1 to ", kMaxTables,
             " tables, got ", tables.size());
  BARK_CHECK(int64_t(tables.size()) <= codes.size(2), kOp, "expected at most ", codes.size(2),
             " tables (one per codebook), got ", tables.size());
  const Tensor& first = tables[0];
  for (const Tensor& table : tables) {
    check_device(kOp, "every table", table, codes.device());
    check_dim(kOp, "every table", table, 2, "[V, C]");
    checked_dtype(kOp, "tables", table);
    check_same_dtype(kOp, "every table", table, "the first", first);
    check_sizes(kOp, "every table", table, first.sizes());
    check_unit_stride(kOp, "every table", table);
  }
  check_device(kOp, "positions", positions, codes.device());
  check_dim(kOp, "positions", positions, 2, "[P, C]");
  check_same_dtype(kOp, "positions", positions, "the tables", first);
  check_unit_stride(kOp, "positions", positions);
  BARK_CHECK(positions.size(1) == first.size(1), kOp, "expected positions of width ", first.size(1), ", got ",
             positions.size(1));
  BARK_CHECK(positions.size(0) >= codes.size(1), kOp, "expected at least ", codes.size(1),
             " positions (one per frame), got ", positions.size(0));
}

}  // namespace bark_accel::embedding_inputs
