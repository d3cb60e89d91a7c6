#include "../checks.h"
#include "isa.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "float32_conv";
constexpr int64_t kWindowFloats = 1 << 16;  // a task's packed rows: they stay in the second cache
constexpr int64_t kMostPanels = 32;
constexpr int64_t kMultipliesPerTask = 1 << 18;

void check_floats(const char* name, const Tensor& t) {
  check_cpu(kOp, name, t);
  BARK_CHECK(t.scalar_type() == kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  check_unit_stride(kOp, name, t);
}

void check_inputs(const Tensor& input, const Tensor& before, const Tensor& weight,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  int64_t dilation) {
  check_dim(kOp, "input", input, 3, "[B, T, C]");
  check_floats("input", input);
  check_dim(kOp, "weight", weight, 3, "[taps, C, N]");
  BARK_CHECK(weight.size(0) > 0 && weight.size(1) > 0, kOp,
             "expected weight of shape [taps, C, N] with taps > 0 and C > 0, got ", weight.sizes());
  check_sizes(kOp, "weight", weight, {weight.size(0), input.size(2), weight.size(2)});
  check_floats("weight", weight);
  check_contiguous(kOp, "weight", weight);
  BARK_CHECK(dilation > 0, kOp, "expected dilation > 0, got ", dilation);
  check_sizes(kOp, "before", before, {input.size(0), (weight.size(0) - 1) * dilation, input.size(2)});
  check_floats("before", before);
  if (bias) {
    check_sizes(kOp, "bias", *bias, {weight.size(2)});
    check_floats("bias", *bias);
  }
  if (residual) {
    check_sizes(kOp, "residual", *residual, {input.size(0), input.size(1), weight.size(2)});
    check_floats("residual", *residual);
  }
}

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

void convolve(Float32ConvParams& p) {
  const KernelTable& table = kernels();
  const int64_t row_panels = parts(p.product.rows, table.int16_panel_rows);
  const int64_t column_panels = parts(p.product.columns, table.int16_panel_columns);
  const int64_t at_once = std::clamp<int64_t>(kWindowFloats / table.float32_conv_window(p), 1, kMostPanels);
  p.row_parts = parts(row_panels, at_once);
  // Few rows for many threads: cut the columns as well.
  p.column_parts = std::min(column_panels, parts(2 * get_num_threads(), p.row_parts));
  const int64_t tasks = p.row_parts * p.column_parts;
  const int64_t work = p.product.rows * p.product.columns * p.taps * p.product.inner / tasks;
  parallel_for(0, tasks, std::max<int64_t>(1, kMultipliesPerTask / std::max<int64_t>(1, work)),
               [&](int64_t begin, int64_t end) {
                 table.float32_conv(p, begin, end, thread_scratch(table.float32_conv_scratch(p)));
               });
}

Tensor float32_conv(const Tensor& input, const Tensor& before, const Tensor& weight,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                    int64_t dilation, bool elu) {
  check_inputs(input, before, weight, bias, residual, dilation);
  Tensor out = empty({input.size(0), input.size(1), weight.size(2)}, kFloat);
  if (out.numel() == 0) return out;
  Float32ConvParams p{};
  p.product.input_stride = input.stride(1);
  p.product.weight = weight.const_data_ptr<float>();
  if (bias) p.product.bias = bias->const_data_ptr<float>();
  if (residual) p.product.residual_stride = residual->stride(1);
  p.product.rows = input.size(1);
  p.product.columns = weight.size(2);
  p.product.inner = input.size(2);
  p.before_stride = before.stride(1);
  p.taps = weight.size(0);
  p.dilation = dilation;
  p.elu = elu;
  for (int64_t b = 0; b < input.size(0); ++b) {
    p.product.input = input.const_data_ptr<float>() + b * input.stride(0);
    p.before = before.const_data_ptr<float>() + b * before.stride(0);
    if (residual) p.product.residual = residual->const_data_ptr<float>() + b * residual->stride(0);
    p.product.out = out.mutable_data_ptr<float>() + b * p.product.rows * p.product.columns;
    convolve(p);
  }
  return out;
}

}  // namespace

const Implementations registered("CPU", {implement<float32_conv>("float32_conv")});

}  // namespace bark_accel
