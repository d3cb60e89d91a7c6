#include "int_linear.h"
#include "int_linear_inputs.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kPack = "pack_linear";
constexpr const char* kOp = "packed_linear";
// Outputs that a matrix may be cut at: a multiple of every instruction set's panel.
constexpr int64_t kCut = 32;

Tensor pack_linear(const Tensor& weight, const std::optional<Tensor>& scales, bool int8_blocks) {
  check_weight(kPack, weight, scales);
  BARK_CHECK(!int8_blocks || scales, kPack, "expected int8_blocks with an int8 weight only, got dtype ",
             weight.scalar_type());
  BARK_CHECK(weight.size(0) % kCut == 0 && weight.size(1) > 0, kPack,
             "expected weight of shape [N, K] with N a multiple of 32 and K > 0, got ", weight.sizes());
  const KernelTable& table = kernels();
  IntLinearParams p{};
  set_weight(kPack, weight, scales, p);
  const int64_t group = int8_blocks ? kInt8Group : table.int16_group;
  const int64_t panels = p.columns / table.int16_panel_columns, groups = (p.inner + group - 1) / group;
  const int64_t rows = int8_blocks ? table.int8_column_rows : table.int16_column_rows;
  Tensor packed = empty({panels, groups, rows, table.int16_panel_columns}, kInt);
  int32_t* to = packed.mutable_data_ptr<int32_t>();
  const auto pack = int8_blocks ? table.int8_pack_columns : table.int16_pack_columns;
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) { pack(p, begin, end, to); });
  return packed;
}

Tensor packed_linear(const Tensor& input, const Tensor& packed, const std::optional<Tensor>& bias,
                     bool gelu) {
  const KernelTable& table = kernels();
  check_input(kOp, input);
  check_cpu(kOp, "packed", packed);
  check_dim(kOp, "packed", packed, 4, "[panels, groups, rows, columns], as pack_linear makes it");
  BARK_CHECK(packed.scalar_type() == kInt, kOp, "expected packed of dtype int32, got ", packed.scalar_type());
  const bool int8_blocks = packed.size(2) == table.int8_column_rows;
  const int64_t group = int8_blocks ? kInt8Group : table.int16_group;
  const int64_t rows = int8_blocks ? table.int8_column_rows : table.int16_column_rows;
  check_sizes(kOp, "packed", packed,
              {packed.size(0), (input.size(1) + group - 1) / group, rows, table.int16_panel_columns});
  check_contiguous(kOp, "packed", packed);
  IntLinearParams p{};
  p.columns = packed.size(0) * table.int16_panel_columns;
  if (bias) check_float_vector(kOp, "bias", *bias, {p.columns});
  Tensor out = empty({input.size(0), p.columns}, kFloat);
  if (out.numel() == 0) return out;
  p.panels = packed.const_data_ptr<int32_t>();
  set_rows(input, bias, out, gelu, p);
  (int8_blocks ? multiply_int8 : multiply_int16)(p);
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<pack_linear>("pack_linear"),
                                         implement<packed_linear>("packed_linear")});

}  // namespace bark_accel
