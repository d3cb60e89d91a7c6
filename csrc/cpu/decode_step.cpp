#include <ATen/core/List.h>
#include <ATen/ops/contiguous.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "isa.h"
#include "team.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "decode_step";
constexpr int64_t kLayerTensors = 16;

using Weights = c10::List<std::optional<at::Tensor>>;

// Reads the flat list of weights in order.
class Reader {
 public:
  explicit Reader(const Weights& weights) : weights_(weights) {}

  NormView norm(int64_t width, double eps) {
    const float* weight = vector("LayerNorm weight", width);
    BARK_CHECK(weight, kOp, "expected a LayerNorm weight, got None");
    return {weight, vector("LayerNorm bias", width), float(eps)};
  }

  MatrixView matrix(int64_t out, int64_t in) {
    const std::optional<at::Tensor> weight = next();
    BARK_CHECK(weight.has_value(), kOp, "expected a weight of shape ", at::IntArrayRef{out, in}, ", got None");
    check_sizes(kOp, "a weight", *weight, {out, in});
    const float* bias = vector("a bias", out);
    return view(*weight, next(), bias);
  }

  MatrixView view(const at::Tensor& weight, const std::optional<at::Tensor>& scales, const float* bias) {
    check_cpu(kOp, "a weight", weight);
    check_unit_stride(kOp, "a weight", weight);
    check_no_grad(kOp, "a weight", weight);
    MatrixView m{weight.const_data_ptr(), weight.stride(0), weight.size(1), DType::kInt8, nullptr, 0, kInt8Group, bias};
    if (weight.scalar_type() != at::kChar) {
      m.dtype = checked_dtype(kOp, "a weight (or int8 with scales)", weight);
      BARK_CHECK(!scales, kOp, "expected scales with int8 weights only, got them with ", weight.scalar_type());
      return m;
    }
    BARK_CHECK(scales.has_value(), kOp, "expected scales with an int8 weight, got None");
    check_cpu(kOp, "scales", *scales);
    check_sizes(kOp, "scales", *scales, {weight.size(0), (weight.size(1) + kInt8Group - 1) / kInt8Group});
    check_unit_stride(kOp, "scales", *scales);
    check_float(*scales, "scales");
    m.scales = scales->const_data_ptr<float>();
    m.scale_stride = scales->stride(0);
    return m;
  }

 private:
  std::optional<at::Tensor> next() { return weights_.get(index_++); }

  static void check_float(const at::Tensor& t, const char* name) {
    BARK_CHECK(t.scalar_type() == at::kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  }

  const float* vector(const char* name, int64_t size) {
    const std::optional<at::Tensor> t = next();
    if (!t) return nullptr;
    check_cpu(kOp, name, *t);
    check_sizes(kOp, name, *t, {size});
    check_float(*t, name);
    check_unit_stride(kOp, name, *t);
    check_no_grad(kOp, name, *t);
    return t->const_data_ptr<float>();
  }

  const Weights& weights_;
  int64_t index_ = 0;
};

void check_table(const char* name, const at::Tensor& table, const at::Tensor& positions) {
  check_cpu(kOp, name, table);
  check_dim(kOp, name, table, 2, "[N, C]");
  check_unit_stride(kOp, name, table);
  check_same_dtype(kOp, name, table, "positions", positions);
  check_no_grad(kOp, name, table);
}

at::Tensor checked_ids(const at::Tensor& ids, int64_t vocabulary) {
  check_cpu(kOp, "ids", ids);
  check_dim(kOp, "ids", ids, 2, "[B, T]");
  BARK_CHECK(ids.scalar_type() == at::kLong, kOp, "expected ids of dtype int64, got ", ids.scalar_type());
  const at::Tensor dense = ids.contiguous();
  const int64_t* id = dense.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < dense.numel(); ++i) {
    BARK_CHECK(0 <= id[i] && id[i] < vocabulary, kOp, "expected ids in [0, ", vocabulary, "), got ", id[i]);
  }
  return dense;
}

void check_cache(const char* name, const at::Tensor& cache, at::IntArrayRef sizes) {
  check_cpu(kOp, name, cache);
  check_dim(kOp, name, cache, 5, "[layers, B, H, capacity, D]");
  check_sizes(kOp, name, cache, sizes);
  check_unit_stride(kOp, name, cache);
  check_no_grad(kOp, name, cache);
}

int64_t checked_length(const at::Tensor& length, int64_t tokens, int64_t capacity, int64_t positions) {
  check_cpu(kOp, "length", length);
  BARK_CHECK(length.scalar_type() == at::kLong && length.dim() == 1 && length.numel() == 1, kOp,
             "expected length as an int64 tensor of shape [1], got ", length.scalar_type(), " of shape ",
             length.sizes());
  const int64_t value = *length.const_data_ptr<int64_t>(), most = std::min(capacity, positions);
  BARK_CHECK(value >= 0, kOp, "expected length >= 0, got ", value);
  BARK_CHECK(value <= most - tokens, kOp, "expected length + tokens <= ", most, " (cache capacity and positions), got ",
             value, " + ", tokens);
  return value;
}

std::vector<CacheView> cache_views(at::Tensor& keys, at::Tensor& values) {
  std::vector<CacheView> views(keys.size(0));
  for (size_t i = 0; i < views.size(); ++i) {
    CacheView& view = views[i];
    view.keys = static_cast<char*>(keys.mutable_data_ptr()) + int64_t(i) * keys.stride(0) * keys.element_size();
    view.values = static_cast<char*>(values.mutable_data_ptr()) + int64_t(i) * values.stride(0) * values.element_size();
    for (int64_t d = 0; d < 3; ++d) {
      view.key_strides[d] = keys.stride(d + 1);
      view.value_strides[d] = values.stride(d + 1);
    }
  }
  return views;
}

std::vector<DecodeLayer> read_layers(Reader& reader, int64_t count, int64_t width, int64_t inner,
                                     at::ArrayRef<double> eps) {
  std::vector<DecodeLayer> layers;
  for (int64_t i = 0; i < count; ++i) {
    DecodeLayer layer;
    layer.norm_1 = reader.norm(width, eps[2 * i]);
    layer.qkv = reader.matrix(3 * width, width);
    layer.attention_out = reader.matrix(width, width);
    layer.norm_2 = reader.norm(width, eps[2 * i + 1]);
    layer.mlp_in = reader.matrix(inner, width);
    layer.mlp_out = reader.matrix(width, inner);
    layers.push_back(layer);
  }
  return layers;
}

int64_t inner_size(const Weights& weights, int64_t width) {
  const std::optional<at::Tensor> mlp_in = weights.get(10);
  BARK_CHECK(mlp_in.has_value(), kOp, "expected mlp_in of shape [N, ", width, "], got None");
  BARK_CHECK(mlp_in->dim() == 2, kOp, "expected mlp_in of shape [N, ", width, "], got ", mlp_in->sizes());
  return mlp_in->size(0);
}

at::Tensor decode_step(const at::Tensor& ids, const at::Tensor& token_table, const at::Tensor& positions,
                       const Weights& weights, at::ArrayRef<double> eps, const at::Tensor& head,
                       const std::optional<at::Tensor>& head_scales, int64_t num_heads, at::Tensor& key_cache,
                       at::Tensor& value_cache, const at::Tensor& length) {
  DecodeParams p{};
  p.table_dtype = checked_dtype(kOp, "positions", positions);
  check_table("positions", positions, positions);
  check_table("token_table", token_table, positions);
  p.width = positions.size(1);
  check_sizes(kOp, "token_table", token_table, {token_table.size(0), p.width});
  const at::Tensor dense_ids = checked_ids(ids, token_table.size(0));
  check_dim(kOp, "key_cache", key_cache, 5, "[layers, B, H, capacity, D]");
  p.cache_dtype = checked_dtype(kOp, "key_cache", key_cache);
  p.layers_count = key_cache.size(0);
  p.batch = ids.size(0);
  p.tokens = ids.size(1);
  p.heads = num_heads;
  BARK_CHECK(p.heads > 0 && p.width > 0 && p.width % p.heads == 0, kOp, "expected num_heads to divide the width ",
             p.width, ", got ", p.heads);
  const int64_t capacity = key_cache.size(3);
  const int64_t cache_sizes[] = {p.layers_count, p.batch, p.heads, capacity, p.width / p.heads};
  check_cache("key_cache", key_cache, cache_sizes);
  check_cache("value_cache", value_cache, cache_sizes);
  check_same_dtype(kOp, "value_cache", value_cache, "key_cache", key_cache);
  check_no_overlap(kOp, key_cache, value_cache);
  p.length = checked_length(length, p.tokens, capacity, positions.size(0));
  BARK_CHECK(int64_t(weights.size()) == kLayerTensors * p.layers_count + 2 && p.layers_count > 0, kOp, "expected ",
             kLayerTensors, " weights for each of ", p.layers_count, " layers and 2 more, got ", weights.size());
  BARK_CHECK(int64_t(eps.size()) == 2 * p.layers_count + 1, kOp, "expected ", 2 * p.layers_count + 1, " eps, got ",
             eps.size());
  p.inner = inner_size(weights, p.width);
  Reader reader(weights);
  const auto layers = read_layers(reader, p.layers_count, p.width, p.inner, eps);
  const auto caches = cache_views(key_cache, value_cache);
  p.norm_final = reader.norm(p.width, eps.back());
  check_dim(kOp, "head", head, 2, "[N, C]");
  check_sizes(kOp, "head", head, {head.size(0), p.width});
  p.head = reader.view(head, head_scales, nullptr);
  p.head_rows = head.size(0);
  at::Tensor logits = at::empty({p.batch, p.tokens, p.head_rows}, positions.options().dtype(at::kFloat));
  if (ids.numel() == 0) return logits;
  p.ids = dense_ids.const_data_ptr<int64_t>();
  p.token_table = token_table.const_data_ptr();
  p.token_stride = token_table.stride(0);
  p.positions = positions.const_data_ptr();
  p.position_stride = positions.stride(0);
  p.layers = layers.data();
  p.caches = caches.data();
  p.logits = logits.mutable_data_ptr<float>();
  const KernelTable& table = kernels();
  const int64_t threads = team_size();
  p.scratch = thread_scratch(table.decode_scratch(p, threads));
  run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  return logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(bark_accel, CPU, m) { m.impl("decode_step", decode_step); }

}  // namespace bark_accel
