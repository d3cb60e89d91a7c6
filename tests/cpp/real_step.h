// Steps of bark-small's and bark's shapes, without data: what is launched of them, and what it takes.
#pragma once

#include "step.h"

namespace support {

// Counts what would be launched.
struct CountingExecutor {
  int64_t launches = 0;

  template <class Kernel>
  void launch(const typename Kernel::Params& params) {
    launches += Kernel::grid(params).blocks > 0;
  }
  void gemv(const GemvParams& p) { launch_gemv(*this, p); }
  void attention(const AttentionSplitParams& p, DType cache) {
    launch_attention_split(*this, p, DType::kFloat32, cache);
  }
};

// What is launched of a step of bark-small's or bark's shape; without data.
class RealStep {
 public:
  RealStep(int64_t layers, int64_t heads, int64_t width, DType dtype, int64_t batch)
      : wide_(matrix(width, dtype)), deep_(matrix(4 * width, dtype)), caches_(layers) {
    const NormView norm{&one_, nullptr, 1e-5f};
    layers_.assign(layers, {norm, wide_, wide_, norm, wide_, deep_});
    DecodeParams& p = step.decode;
    p.batch = batch;
    p.tokens = 1;
    p.width = width;
    p.heads = heads;
    p.inner = 4 * width;
    p.layers_count = layers;
    p.head_rows = 10001;
    p.layers = layers_.data();
    p.caches = caches_.data();
    p.norm_final = norm;
    p.head = wide_;
    step.capacity = 1024;
    step.splits = attention_splits(batch, heads, 1024);
  }
  RealStep(const RealStep&) = delete;

  DecodeStepParams step{};

 private:
  static MatrixView matrix(int64_t depth, DType dtype) {
    return {nullptr, depth, depth, dtype, nullptr, depth / kInt8Group, kInt8Group, nullptr};
  }

  const float one_ = 1;
  MatrixView wide_, deep_;
  std::vector<DecodeLayer> layers_;
  std::vector<CacheView> caches_;
};

inline constexpr struct {
  int64_t layers, heads, width, most_kernels;
} kShapes[] = {{12, 12, 768, 61}, {24, 16, 1024, 121}};

}  // namespace support
