// Sums of rows of embedding tables, and the first code that is outside of its table.
#pragma once

#include "common.h"

namespace cpu_cases {

inline void embedding_sums(Run& run) {
  const KernelTable& table = any_table(run);
  EmbeddingSumParams p{};
  p.tables_count = run.integer(1, 8);
  p.frames = run.size(20);
  p.width = run.size(200);
  p.vocabulary = run.integer(1, 9);
  p.dtype = any_float(run);
  p.position_stride = p.width;
  p.codes_are_int64 = run.coin();
  const int64_t batch = run.integer(1, 2);
  fill_strides(p.codes_strides, p.frames, p.tables_count, 1);
  std::vector<int64_t> codes(batch * p.frames * p.tables_count, p.vocabulary - 1);
  for (int64_t& c : codes) c = run.coin() ? c : run.integer(0, p.vocabulary - 1);
  codes.back() = p.vocabulary - 1;
  for (int64_t i = 0; i < p.tables_count; ++i) codes[i] = p.vocabulary - 1;  // the last row of every table
  const int64_t bad = run.coin() ? -1 : run.integer(0, int64_t(codes.size()) - 1);
  Blocks to;
  std::vector<Numbers> tables;
  std::vector<const void*> pointers;
  for (int64_t i = 0; i < p.tables_count; ++i) {
    tables.emplace_back(run, p.vocabulary * p.width, p.dtype);
    pointers.push_back(tables.back().exact(to));
  }
  const Numbers positions(run, p.frames * p.width, p.dtype);
  p.positions = positions.exact(to);
  p.tables = to.exact(pointers);
  p.table_strides = to.exact(std::vector<int64_t>(p.tables_count, p.width));
  p.codes = p.codes_are_int64 ? static_cast<const void*>(to.exact(codes))
                              : to.exact(std::vector<int32_t>(codes.begin(), codes.end()));
  p.out = to.result<float>(batch * p.frames * p.width);
  parallel(run, batch * p.frames, [&](int64_t begin, int64_t end) { table.embedding_sum(p, begin, end); });
  for (int64_t i = 0; i < batch * p.frames * p.width; ++i) {
    const int64_t row = i / p.width, c = i % p.width;
    double sum = positions[row % p.frames * p.width + c];
    for (int64_t k = 0; k < p.tables_count; ++k)
      sum += tables[k][codes[row * p.tables_count + k] * p.width + c];
    run.expect_close(p.out[i], sum, 4, 1e-6, "embedding sum " + std::to_string(i));
  }
  if (bad < 0) return;
  codes[bad] = run.coin() ? -1 : p.vocabulary;
  const std::vector<int32_t> narrow(codes.begin(), codes.end());
  p.codes = p.codes_are_int64 ? static_cast<const void*>(codes.data()) : narrow.data();
  run.expect(table.embedding_sum(p, 0, batch * p.frames) == bad, "the first bad code is named");
}

}  // namespace cpu_cases
