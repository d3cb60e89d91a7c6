// The whole step of csrc/cuda/decode_step.cuh, the kernels in their order, against double precision; and
// codebook_embedding_sum.cuh.
#include "decode_step.cuh"

#include "codebook_embedding_sum.cuh"
#include "support.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

struct StepExecutor {
  Executor& executor;
  void embed(const EmbedParams& p, DType tables) { launch_embed(executor, p, tables); }
  void gemv(const GemvParams& p) { launch_gemv(executor, p); }
  void attention(const AttentionSplitParams& p, DType cache) {
    launch_attention_split(executor, p, DType::kFloat32, cache);
  }
  void combine(const AttentionCombineParams& p) { launch_attention_combine(executor, p, DType::kFloat32); }
};

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
  int64_t batch, tokens, heads, head_dim, inner, capacity, length, vocabulary, head_rows;
  DType weights, tables, cache;
  std::vector<Layer> layers;
  Matrix token_table, positions, head;
  Norm norm_final;
  int64_t width() const { return heads * head_dim; }
};

Model random_model(Run& run, int64_t heads, int64_t head_dim) {
  Model m{};
  m.batch = run.integer(1, 3);
  m.tokens = run.integer(1, 3);
  m.heads = heads;
  m.head_dim = head_dim;
  m.inner = 4 * m.width();
  m.capacity = run.integer(12, 70);
  m.length = run.integer(0, m.capacity - m.tokens);
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

double rounded(double x, DType dtype) {
  double kept = 0;
  with_float_type(dtype, [&](auto zero) { kept = to_float(from_float<decltype(zero)>(float(x))); });
  return kept;
}

// Caches as [layer, K or V][b, h, position, d] in double, as the kernels should leave them.
struct Caches {
  std::vector<std::vector<double>> values;
  std::vector<std::vector<char>> storage;
};

std::vector<double> attend(const Model& m, Caches& caches, int64_t layer, int64_t b, int64_t t,
                           const std::vector<double>& qkv) {
  std::vector<double> out(m.width());
  std::vector<double>&keys = caches.values[2 * layer], &values = caches.values[2 * layer + 1];
  for (int64_t h = 0; h < m.heads; ++h) {
    const int64_t base = (b * m.heads + h) * m.capacity, end = m.length + t + 1;
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

void add(std::vector<double>& to, const std::vector<double>& what) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
}

std::vector<double> reference_logits(const Model& m, Caches& caches, int64_t b, int64_t t, int64_t id) {
  std::vector<double> hidden(m.width());
  for (int64_t c = 0; c < m.width(); ++c) {
    hidden[c] = m.token_table.values[id * m.width() + c] + m.positions.values[(m.length + t) * m.width() + c];
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

Caches random_caches(Run& run, const Model& m) {
  Caches c;
  const int64_t size = m.batch * m.heads * m.capacity * m.head_dim;
  for (size_t i = 0; i < 2 * m.layers.size(); ++i) {
    const Matrix random = Matrix::random(run, size, 1, m.cache, false);
    c.values.push_back(random.values);
    c.storage.push_back(random.storage);
  }
  return c;
}

DecodeStepParams params(const Model& m, Caches& caches, std::vector<DecodeLayer>& layers,
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
  DecodeStepParams step{};
  DecodeParams& p = step.decode;
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
  step.length = &m.length;
  step.capacity = m.capacity;
  step.vocabulary = m.vocabulary;
  step.positions_count = m.capacity;
  step.splits = 5;
  return step;
}

// What the kernels make of the model: logits [B, T, head_rows].
std::vector<float> run_step(Run& run, const Model& m, Caches& caches, const std::vector<int64_t>& ids) {
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  DecodeStepParams step = params(m, caches, layers, views);
  std::vector<float> logits(m.batch * m.tokens * m.head_rows, NAN);
  step.decode.ids = ids.data();
  step.decode.logits = logits.data();
  Buffer<float> scratch(decode_scratch(step).floats);
  step.decode.scratch = scratch.data();
  StepExecutor executor{run.executor};
  decode_step(executor, step);
  return logits;
}

void check_model(Run& run, const Model& m) {
  Caches caches = random_caches(run, m);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < m.batch * m.tokens; ++i) ids.push_back(run.integer(0, m.vocabulary - 1));
  const std::vector<float> logits = run_step(run, m, caches, ids);
  for (int64_t b = 0; b < m.batch; ++b) {
    for (int64_t t = 0; t < m.tokens; ++t) {
      const int64_t row = b * m.tokens + t;
      const std::vector<double> expected = reference_logits(m, caches, b, t, ids[row]);
      double scale = 1;
      for (const double x : expected) scale = std::max(scale, std::fabs(x));
      // A 16-bit cache may round a key the other way.
      const double tolerance = m.cache == DType::kFloat32 ? 2e-5 : 2e-2;
      for (int64_t n = 0; n < m.head_rows; ++n) {
        run.expect_close(logits[row * m.head_rows + n], expected[n], scale, tolerance,
                         "row " + std::to_string(row) + ", logit " + std::to_string(n));
      }
    }
  }
}

void small_models(Run& run) {
  check_model(run, random_model(run, run.integer(1, 2), run.pick<int64_t>({3, 8})));
}

void models(Run& run) {
  check_model(run, random_model(run, run.integer(1, 3), run.pick<int64_t>({16, 20, 32})));
}

// An id or a length that does not fit gives NaN, in that row or everywhere.
void bad_inputs(Run& run) {
  Model m = random_model(run, 2, 8);
  Caches caches = random_caches(run, m);
  std::vector<int64_t> ids(m.batch * m.tokens, 1);
  const bool bad_length = run.coin();
  if (bad_length) m.length = run.coin() ? -1 : m.capacity - m.tokens + 1;
  ids[0] = bad_length ? 1 : run.pick<int64_t>({-1, m.vocabulary});
  const std::vector<float> logits = run_step(run, m, caches, ids);
  for (int64_t i = 0; i < m.head_rows; ++i) run.expect(std::isnan(logits[i]), "NaN in the first row");
  for (size_t i = m.tokens * m.head_rows; i < logits.size(); ++i) {
    run.expect(std::isnan(logits[i]) == bad_length, "another batch row");
  }
}

void embedding_sums(Run& run) {
  const int64_t batch = run.integer(1, 3), frames = run.size(40), tables = run.integer(1, 8),
                width = run.size(300);
  const int64_t codebooks = tables + run.integer(0, 2), vocabulary = run.integer(1, 40);
  std::vector<Matrix> held;
  CodebookEmbeddingSumParams p{};
  for (int64_t k = 0; k < tables; ++k) {
    held.push_back(Matrix::random(run, vocabulary, width, DType::kFloat16, false));
    p.tables[k] = held.back().storage.data();
    p.table_strides[k] = width;
  }
  const Matrix positions = Matrix::random(run, frames, width, DType::kFloat16, false);
  std::vector<int64_t> codes(batch * frames * codebooks);
  for (int64_t& c : codes) c = run.integer(0, vocabulary - 1);
  const int64_t wrong = run.coin() ? run.integer(0, batch * frames - 1) : -1;
  const int64_t wrong_codebook = run.integer(0, tables - 1);
  if (wrong >= 0) codes[wrong * codebooks + wrong_codebook] = run.coin() ? -1 : vocabulary;
  std::vector<int32_t> narrow(codes.begin(), codes.end()), bad(batch * frames, -7);
  Buffer<float> out(batch * frames * width);
  p.codes_are_int64 = run.coin();
  p.codes = p.codes_are_int64 ? static_cast<const void*>(codes.data()) : narrow.data();
  const int64_t strides[3] = {frames * codebooks, codebooks, 1};
  for (int i = 0; i < 3; ++i) p.codes_strides[i] = strides[i];
  p.batch = batch;
  p.frames = frames;
  p.tables_count = tables;
  p.vocabulary = vocabulary;
  p.width = width;
  p.positions = positions.storage.data();
  p.position_stride = width;
  p.out = out.data();
  p.bad = bad.data();
  launch_codebook_embedding_sum(run.executor, p, DType::kFloat16);
  for (int64_t row = 0; row < batch * frames; ++row) {
    run.expect(bad[row] == (row == wrong ? wrong_codebook : -1), "the bad codebook of a frame");
    for (int64_t c = 0; c < width; ++c) {
      double sum = positions.values[row % frames * width + c];
      for (int64_t k = 0; k < tables && row != wrong; ++k)
        sum += held[k].values[codes[row * codebooks + k] * width + c];
      run.expect_close(out[row * width + c], row == wrong ? NAN : sum, 4, 1e-6, "embedding sum");
    }
  }
}

constexpr Case kCases[] = {
    {"small models", 24, true, small_models},
    {"models", 8, false, models},
    {"bad inputs", 8, false, bad_inputs},
    {"embedding sums", 30, false, embedding_sums},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
