// A small causal transformer: what decode_step reads, and what it should give, in double precision.
#pragma once

#include "support.h"

namespace support {

using bark_accel::CacheView;
using bark_accel::DecodeLayer;
using bark_accel::DecodeParams;
using bark_accel::kInt8Group;
using bark_accel::MatrixView;
using bark_accel::NormView;
using bark_accel::cuda::ceil_div;
using bark_accel::cuda::size_of;
using bark_accel::cuda::with_float_type;

// A vector or matrix in double and as the kernels see it.
struct Matrix {
  int64_t outputs = 0, depth = 0;
  std::vector<double> values;
  std::vector<char> storage;
  std::vector<float> scales, bias;
  MatrixView view{};

  static Matrix random(Run& run, int64_t outputs, int64_t depth, DType dtype, bool biased) {
    Matrix m;
    m.outputs = outputs;
    m.depth = depth;
    m.storage.resize(outputs * depth * size_of(dtype));
    const int64_t groups = ceil_div(depth, kInt8Group);
    for (int64_t i = 0; i < outputs * groups; ++i) m.scales.push_back(float(0.5 + run.uniform()) / 127 / 4);
    for (int64_t i = 0; i < outputs * depth; ++i) m.values.push_back(m.store(run, i, dtype, groups));
    for (int64_t i = 0; biased && i < outputs; ++i) m.bias.push_back(run.normal() * 0.1f);
    m.view = {nullptr, depth, depth, dtype, nullptr, groups, kInt8Group, nullptr};
    return m;
  }

  // Moving a Matrix keeps what the view points to, copying does not: views are made when they are asked for.
  MatrixView at() const {
    MatrixView v = view;
    v.weight = storage.data();
    v.scales = v.dtype == DType::kInt8 ? scales.data() : nullptr;
    v.bias = bias.empty() ? nullptr : bias.data();
    return v;
  }

  std::vector<double> times(const std::vector<double>& x) const {
    std::vector<double> y(outputs);
    for (int64_t n = 0; n < outputs; ++n) {
      y[n] = bias.empty() ? 0 : bias[n];
      for (int64_t k = 0; k < depth; ++k) y[n] += values[n * depth + k] * x[k];
    }
    return y;
  }

 private:
  double store(Run& run, int64_t i, DType dtype, int64_t groups) {
    if (dtype == DType::kInt8) {
      const auto q = int8_t(run.integer(-127, 127));
      std::memcpy(&storage[i], &q, 1);
      return double(q) * scales[i / depth * groups + i % depth / kInt8Group];
    }
    double kept = 0;
    with_float_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      const T value = from_float<T>(run.normal() * 0.3f);
      std::memcpy(&storage[i * sizeof(T)], &value, sizeof(T));
      kept = to_float(value);
    });
    return kept;
  }
};

struct Norm {
  std::vector<float> weight, bias;

  static Norm random(Run& run, int64_t n) {
    Norm norm;
    const bool biased = run.coin();
    for (int64_t i = 0; i < n; ++i) {
      norm.weight.push_back(1 + run.normal() * 0.1f);
      if (biased) norm.bias.push_back(run.normal() * 0.1f);
    }
    return norm;
  }

  NormView view() const { return {weight.data(), bias.empty() ? nullptr : bias.data(), 1e-5f}; }

  std::vector<double> of(const std::vector<double>& x) const {
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / double(x.size());
    for (const double v : x) variance += (v - mean) * (v - mean) / double(x.size());
    std::vector<double> y(x);
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + (bias.empty() ? 0 : bias[i]);
    }
    return y;
  }
};

struct Layer {
  Norm norm_1, norm_2;
  Matrix qkv, attention_out, mlp_in, mlp_out;
};

struct Model {
  int64_t batch, tokens, heads, head_dim, inner, capacity, vocabulary, head_rows;
  std::vector<int64_t> lengths;  // of each row; -1: idle
  std::vector<int64_t> slots;    // all rows
  DType weights, tables, cache;
  std::vector<Layer> layers;
  Matrix token_table, positions, head;
  Norm norm_final;
  int64_t width() const { return heads * head_dim; }
};

// Some rows idle.
inline void set_lengths(Run& run, Model& m) {
  m.lengths.clear();
  m.slots.clear();
  for (int64_t b = 0; b < m.batch; ++b) {
    m.lengths.push_back(run.integer(0, 5) == 0 ? -1 : run.integer(0, m.capacity - m.tokens));
    m.slots.push_back(b);
  }
}

// `inner` 0: as Bark has it.
inline Model random_model(Run& run, int64_t heads, int64_t head_dim, int64_t inner = 0) {
  Model m{};
  m.batch = run.integer(1, 3);
  m.tokens = run.integer(1, 3);
  m.heads = heads;
  m.head_dim = head_dim;
  m.inner = inner ? inner : 4 * m.width();
  m.capacity = run.integer(12, 70);
  set_lengths(run, m);
  m.vocabulary = 19;
  m.head_rows = run.integer(1, 40);
  m.weights = run.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8});
  m.tables = run.pick({DType::kFloat32, DType::kFloat16});
  m.cache = run.pick({DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  const bool biased = run.coin();
  for (int64_t i = 0; i < 2; ++i) {
    m.layers.push_back({Norm::random(run, m.width()), Norm::random(run, m.width()),
                        Matrix::random(run, 3 * m.width(), m.width(), m.weights, biased),
                        Matrix::random(run, m.width(), m.width(), m.weights, biased),
                        Matrix::random(run, m.inner, m.width(), m.weights, biased),
                        Matrix::random(run, m.width(), m.inner, m.weights, biased)});
  }
  m.token_table = Matrix::random(run, m.vocabulary, m.width(), m.tables, false);
  m.positions = Matrix::random(run, m.capacity, m.width(), m.tables, false);
  m.head = Matrix::random(run, m.head_rows, m.width(), m.weights, false);
  m.norm_final = Norm::random(run, m.width());
  return m;
}

inline double rounded(double x, DType dtype) {
  double kept = 0;
  with_float_type(dtype, [&](auto zero) { kept = to_float(from_float<decltype(zero)>(float(x))); });
  return kept;
}

// Caches as [layer, K or V][b, h, position, d] in double, as the kernels should leave them.
struct Caches {
  std::vector<std::vector<double>> values;
  std::vector<std::vector<char>> storage;
};

inline std::vector<double> attend(const Model& m, Caches& caches, int64_t layer, int64_t b, int64_t t,
                                  const std::vector<double>& qkv) {
  std::vector<double> out(m.width());
  std::vector<double>&keys = caches.values[2 * layer], &values = caches.values[2 * layer + 1];
  for (int64_t h = 0; h < m.heads; ++h) {
    const int64_t base = (b * m.heads + h) * m.capacity, end = m.lengths[b] + t + 1;
    for (int64_t d = 0; d < m.head_dim; ++d) {
      keys[(base + end - 1) * m.head_dim + d] = rounded(qkv[m.width() + h * m.head_dim + d], m.cache);
      values[(base + end - 1) * m.head_dim + d] = rounded(qkv[2 * m.width() + h * m.head_dim + d], m.cache);
    }
    std::vector<double> weights(end);
    double total = 0;
    for (int64_t i = 0; i < end; ++i) {
      double dot = 0;
      for (int64_t d = 0; d < m.head_dim; ++d)
        dot += qkv[h * m.head_dim + d] * keys[(base + i) * m.head_dim + d];
      total += weights[i] = std::exp(dot / std::sqrt(double(m.head_dim)));
    }
    for (int64_t d = 0; d < m.head_dim; ++d) {
      for (int64_t i = 0; i < end; ++i) {
        out[h * m.head_dim + d] += weights[i] / total * values[(base + i) * m.head_dim + d];
      }
    }
  }
  return out;
}

inline void add(std::vector<double>& to, const std::vector<double>& what) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
}

inline std::vector<double> reference_logits(const Model& m, Caches& caches, int64_t b, int64_t t,
                                            int64_t id) {
  std::vector<double> hidden(m.width());
  for (int64_t c = 0; c < m.width(); ++c) {
    hidden[c] =
        m.token_table.values[id * m.width() + c] + m.positions.values[(m.lengths[b] + t) * m.width() + c];
  }
  for (size_t i = 0; i < m.layers.size(); ++i) {
    const Layer& layer = m.layers[i];
    const auto attended = attend(m, caches, int64_t(i), b, t, layer.qkv.times(layer.norm_1.of(hidden)));
    add(hidden, layer.attention_out.times(attended));
    std::vector<double> inner = layer.mlp_in.times(layer.norm_2.of(hidden));
    for (double& x : inner) x = 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    add(hidden, layer.mlp_out.times(inner));
  }
  return m.head.times(m.norm_final.of(hidden));
}

inline Caches random_caches(Run& run, const Model& m) {
  Caches c;
  const int64_t size = m.batch * m.heads * m.capacity * m.head_dim;
  for (size_t i = 0; i < 2 * m.layers.size(); ++i) {
    const Matrix random = Matrix::random(run, size, 1, m.cache, false);
    c.values.push_back(random.values);
    c.storage.push_back(random.storage);
  }
  return c;
}

// Points into all of its arguments; ids, logits and scratch are still missing.
inline DecodeParams decode_params(const Model& m, Caches& caches, std::vector<DecodeLayer>& layers,
                                  std::vector<CacheView>& views) {
  for (size_t i = 0; i < m.layers.size(); ++i) {
    const Layer& layer = m.layers[i];
    layers.push_back({layer.norm_1.view(), layer.qkv.at(), layer.attention_out.at(), layer.norm_2.view(),
                      layer.mlp_in.at(), layer.mlp_out.at()});
    CacheView view{caches.storage[2 * i].data(), caches.storage[2 * i + 1].data(), {}, {}};
    const int64_t strides[3] = {m.heads * m.capacity * m.head_dim, m.capacity * m.head_dim, m.head_dim};
    for (int d = 0; d < 3; ++d) view.key_strides[d] = view.value_strides[d] = strides[d];
    views.push_back(view);
  }
  DecodeParams p{};
  p.batch = m.batch;
  p.tokens = m.tokens;
  p.width = m.width();
  p.heads = m.heads;
  p.inner = m.inner;
  p.layers_count = int64_t(m.layers.size());
  p.head_rows = m.head_rows;
  p.token_table = m.token_table.storage.data();
  p.positions = m.positions.storage.data();
  p.token_stride = p.position_stride = m.width();
  p.table_dtype = m.tables;
  p.cache_dtype = m.cache;
  p.layers = layers.data();
  p.caches = views.data();
  p.norm_final = m.norm_final.view();
  p.head = m.head.at();
  p.lengths = m.lengths.data();
  p.slots = m.slots.data();
  p.longest = *std::max_element(m.lengths.begin(), m.lengths.end());
  return p;
}

}  // namespace support
