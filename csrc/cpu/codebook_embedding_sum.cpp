#include <atomic>
#include <limits>

#include "../embedding_inputs.h"
#include "isa.h"

namespace bark_accel {
namespace {

using namespace embedding_inputs;

constexpr int64_t kValuesPerTask = 32768;
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

void raise_bad_code(const EmbeddingSumParams& p, int64_t bad) {
  const int64_t codebook = bad % p.tables_count, row = bad / p.tables_count;
  const int64_t b = row / p.frames, t = row % p.frames;
  const int64_t at = b * p.codes_strides[0] + t * p.codes_strides[1] + codebook * p.codes_strides[2];
  const int64_t value =
      p.codes_are_int64 ? static_cast<const int64_t*>(p.codes)[at] : static_cast<const int32_t*>(p.codes)[at];
  BARK_CHECK(false, kOp, "expected codes in [0, ", p.vocabulary, "), got ", value, " in codebook ", codebook,
             ", frame ", t, ", batch row ", b);
}

Tensor codebook_embedding_sum(const Tensor& codes, const TensorList& tables, const Tensor& positions) {
  check_inputs(codes, tables, positions);
  const void* data[kMaxTables];
  int64_t strides[kMaxTables];
  for (size_t i = 0; i < tables.size(); ++i) {
    data[i] = tables[i].const_data_ptr();
    strides[i] = tables[i].stride(0);
  }
  Tensor out = empty({codes.size(0), codes.size(1), positions.size(1)}, kFloat, positions.device());
  EmbeddingSumParams p{};
  p.codes = codes.const_data_ptr();
  p.codes_are_int64 = codes.scalar_type() == kLong;
  for (int64_t i = 0; i < 3; ++i) p.codes_strides[i] = codes.stride(i);
  p.frames = codes.size(1);
  p.tables_count = int64_t(tables.size());
  p.tables = data;
  p.table_strides = strides;
  p.vocabulary = tables[0].size(0);
  p.positions = positions.const_data_ptr();
  p.position_stride = positions.stride(0);
  p.dtype = checked_dtype(kOp, "tables", tables[0]);
  p.width = positions.size(1);
  p.out = out.mutable_data_ptr<float>();

  const KernelTable& table = kernels();
  std::atomic<int64_t> bad{kNone};
  const int64_t values_per_row = std::max<int64_t>(1, p.width * (p.tables_count + 1));
  parallel_for(0, codes.size(0) * p.frames, std::max<int64_t>(1, kValuesPerTask / values_per_row),
               [&](int64_t begin, int64_t end) {
                 const int64_t found = table.embedding_sum(p, begin, end);
                 if (found < 0) return;
                 int64_t seen = bad.load();
                 while (found < seen && !bad.compare_exchange_weak(seen, found)) {
                 }
               });
  if (bad != kNone) raise_bad_code(p, bad);
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<codebook_embedding_sum>("codebook_embedding_sum")});

}  // namespace bark_accel
