// The arguments of decode_step, checked and as plain structs, for any device. What only a look at the data
// can tell (ids, lengths) is left to the implementations.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace bark_accel::decode_inputs {

constexpr const char* kOp = "decode_step";
constexpr int64_t kLayerTensors = 16;

using Weights = std::vector<std::optional<Tensor>>;

// Reads the flat list of weights in order.
class Reader {
 public:
  Reader(const Weights& weights, Device device) : weights_(weights), device_(device) {}

  NormView norm(int64_t width, double eps) {
    const float* weight = vector("LayerNorm weight", width);
    BARK_CHECK(weight, kOp, "expected a LayerNorm weight, got None");
    return {weight, vector("LayerNorm bias", width), float(eps)};
  }

  MatrixView matrix(int64_t out, int64_t in) {
    const std::optional<Tensor>& weight = next();
    BARK_CHECK(weight.has_value(), kOp, "expected a weight of shape ", Sizes{out, in}, ", got None");
    check_sizes(kOp, "a weight", *weight, {out, in});
    const float* bias = vector("a bias", out);
    return view(*weight, next(), bias);
  }

  MatrixView view(const Tensor& weight, const std::optional<Tensor>& scales, const float* bias) {
    check_device(kOp, "a weight", weight, device_);
    check_unit_stride(kOp, "a weight", weight);
    MatrixView m{weight.const_data_ptr(),
                 weight.stride(0),
                 weight.size(1),
                 DType::kInt8,
                 nullptr,
                 0,
                 kInt8Group,
                 bias};
    if (weight.scalar_type() != kChar) {
      m.dtype = checked_dtype(kOp, "a weight (or int8 with scales)", weight);
      BARK_CHECK(!scales, kOp, "expected scales with int8 weights only, got them with ",
                 weight.scalar_type());
      return m;
    }
    BARK_CHECK(scales.has_value(), kOp, "expected scales with an int8 weight, got None");
    check_device(kOp, "scales", *scales, device_);
    check_sizes(kOp, "scales", *scales, {weight.size(0), (weight.size(1) + kInt8Group - 1) / kInt8Group});
    check_unit_stride(kOp, "scales", *scales);
    check_float(*scales, "scales");
    m.scales = scales->const_data_ptr<float>();
    m.scale_stride = scales->stride(0);
    return m;
  }

 private:
  const std::optional<Tensor>& next() { return weights_[index_++]; }

  static void check_float(const Tensor& t, const char* name) {
    BARK_CHECK(t.scalar_type() == kFloat, kOp, "expected ", name, " of dtype float32, got ", t.scalar_type());
  }

  const float* vector(const char* name, int64_t size) {
    const std::optional<Tensor>& t = next();
    if (!t) return nullptr;
    check_device(kOp, name, *t, device_);
    check_sizes(kOp, name, *t, {size});
    check_float(*t, name);
    check_unit_stride(kOp, name, *t);
    return t->const_data_ptr<float>();
  }

  const Weights& weights_;
  Device device_;
  int64_t index_ = 0;
};

inline void check_table(const char* name, const Tensor& table, const Tensor& positions, Device device) {
  check_device(kOp, name, table, device);
  check_dim(kOp, name, table, 2, "[N, C]");
  check_unit_stride(kOp, name, table);
  check_same_dtype(kOp, name, table, "positions", positions);
}

inline void check_ids(const Tensor& ids, Device device) {
  check_device(kOp, "ids", ids, device);
  check_dim(kOp, "ids", ids, 2, "[B, T]");
  BARK_CHECK(ids.scalar_type() == kLong, kOp, "expected ids of dtype int64, got ", ids.scalar_type());
}

inline void check_cache(const char* name, const Tensor& cache, Sizes sizes, Device device) {
  check_device(kOp, name, cache, device);
  check_dim(kOp, name, cache, 5, "[layers, B, H, capacity, D]");
  check_sizes(kOp, name, cache, sizes);
  check_unit_stride(kOp, name, cache);
}

inline std::vector<CacheView> cache_views(Tensor& keys, Tensor& values) {
  std::vector<CacheView> views(keys.size(0));
  for (size_t i = 0; i < views.size(); ++i) {
    CacheView& view = views[i];
    view.keys =
        static_cast<char*>(keys.mutable_data_ptr()) + int64_t(i) * keys.stride(0) * keys.element_size();
    view.values =
        static_cast<char*>(values.mutable_data_ptr()) + int64_t(i) * values.stride(0) * values.element_size();
    for (int64_t d = 0; d < 3; ++d) {
      view.key_strides[d] = keys.stride(d + 1);
      view.value_strides[d] = values.stride(d + 1);
    }
  }
  return views;
}

inline std::vector<DecodeLayer> read_layers(Reader& reader, int64_t count, int64_t width, int64_t inner,
                                            const std::vector<double>& eps) {
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

inline int64_t inner_size(const Weights& weights, int64_t width) {
  const std::optional<Tensor>& mlp_in = weights[10];
  BARK_CHECK(mlp_in.has_value(), kOp, "expected mlp_in of shape [N, ", width, "], got None");
  BARK_CHECK(mlp_in->dim() == 2, kOp, "expected mlp_in of shape [N, ", width, "], got ", mlp_in->sizes());
  return mlp_in->size(0);
}

struct DecodeInputs {
  DecodeParams params;  // without ids and lengths to be trusted, slots and scratch; points into the rest
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> caches;
  Tensor ids, lengths;  // contiguous
  Tensor logits;        // [B, T, head rows] float32, to be written
  int64_t capacity, vocabulary, positions_count;
};

inline DecodeInputs read(const Tensor& ids, const Tensor& token_table, const Tensor& positions,
                         const Weights& weights, const std::vector<double>& eps, const Tensor& head,
                         const std::optional<Tensor>& head_scales, int64_t num_heads, Tensor& key_cache,
                         Tensor& value_cache, const Tensor& length, Device device) {
  DecodeInputs in{};
  DecodeParams& p = in.params;
  p.table_dtype = checked_dtype(kOp, "positions", positions);
  check_table("positions", positions, positions, device);
  check_table("token_table", token_table, positions, device);
  p.width = positions.size(1);
  check_sizes(kOp, "token_table", token_table, {token_table.size(0), p.width});
  check_ids(ids, device);
  check_dim(kOp, "key_cache", key_cache, 5, "[layers, B, H, capacity, D]");
  const bool in_bytes = key_cache.scalar_type() == kChar && device == kCPU;
  p.cache_dtype = in_bytes ? DType::kInt8 : checked_dtype(kOp, "key_cache (or on the CPU int8)", key_cache);
  p.layers_count = key_cache.size(0);
  p.batch = ids.size(0);
  p.tokens = ids.size(1);
  p.heads = num_heads;
  BARK_CHECK(p.heads > 0 && p.width > 0 && p.width % p.heads == 0, kOp,
             "expected num_heads to divide the width ", p.width, ", got ", p.heads);
  const int64_t capacity = in.capacity = key_cache.size(3);
  const int64_t row_size = p.width / p.heads + (in_bytes ? kCacheScaleBytes : 0);
  const int64_t cache_sizes[] = {p.layers_count, p.batch, p.heads, capacity, row_size};
  check_cache("key_cache", key_cache, cache_sizes, device);
  check_cache("value_cache", value_cache, cache_sizes, device);
  check_same_dtype(kOp, "value_cache", value_cache, "key_cache", key_cache);
  check_no_overlap(kOp, key_cache, value_cache);
  check_lengths(kOp, length, p.batch, device);
  BARK_CHECK(int64_t(weights.size()) == kLayerTensors * p.layers_count + 2 && p.layers_count > 0, kOp,
             "expected ", kLayerTensors, " weights for each of ", p.layers_count, " layers and 2 more, got ",
             weights.size());
  BARK_CHECK(int64_t(eps.size()) == 2 * p.layers_count + 1, kOp, "expected ", 2 * p.layers_count + 1,
             " eps, got ", eps.size());
  p.inner = inner_size(weights, p.width);
  Reader reader(weights, device);
  in.layers = read_layers(reader, p.layers_count, p.width, p.inner, eps);
  in.caches = cache_views(key_cache, value_cache);
  p.norm_final = reader.norm(p.width, eps.back());
  check_dim(kOp, "head", head, 2, "[N, C]");
  check_sizes(kOp, "head", head, {head.size(0), p.width});
  p.head = reader.view(head, head_scales, nullptr);
  p.head_rows = head.size(0);
  in.logits = empty({p.batch, p.tokens, p.head_rows}, kFloat, positions.device());
  in.vocabulary = token_table.size(0);
  in.positions_count = positions.size(0);
  in.ids = contiguous(ids);
  p.ids = in.ids.const_data_ptr<int64_t>();
  in.lengths = contiguous(length);
  p.lengths = in.lengths.const_data_ptr<int64_t>();
  p.token_table = token_table.const_data_ptr();
  p.token_stride = token_table.stride(0);
  p.positions = positions.const_data_ptr();
  p.position_stride = positions.stride(0);
  p.layers = in.layers.data();
  p.caches = in.caches.data();
  p.logits = in.logits.mutable_data_ptr<float>();
  return in;
}

}  // namespace bark_accel::decode_inputs
