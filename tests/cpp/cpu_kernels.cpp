// The kernels of csrc/kernels as csrc/cpu calls them, against double precision, on buffers of exactly the
// size they need: built with a sanitizer, this sees what they read, write and share too much. BARK_KERNELS
// lists the tables that were linked. Arguments: none, all cases; --short N, every N-th buffer of every case
// in turn one element too short, where the kernels have to die; --no-barrier, threads that do not wait for
// each other.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "../../csrc/cpu/barrier.h"
#include "model.h"

namespace {

using namespace bark_accel;
using namespace support;

const KernelTable* const kTables[] = {BARK_KERNELS};
bool no_barrier = false;
// What goes to the kernels is copied to blocks of its own; the one of this number lacks its last element.
int64_t short_block = -1, blocks = 0;

// Blocks that one call of the kernels sees.
class Blocks {
 public:
  // One that the kernels use to its last element.
  template <class T>
  T* exact(const T* from, int64_t size) {
    return block(from, size, blocks++ == short_block ? size - 1 : size);
  }
  template <class T>
  T* exact(const std::vector<T>& from) {
    return from.empty() ? nullptr : exact(from.data(), int64_t(from.size()));
  }
  // One with room that need not be used.
  template <class T>
  T* roomy(const std::vector<T>& from) {
    return block(from.data(), int64_t(from.size()), int64_t(from.size()));
  }
  template <class T>
  T* empty(int64_t size) {
    return roomy(std::vector<T>(size));
  }
  // Written by the kernels from its first to its last element.
  template <class T>
  T* result(int64_t size) {
    return exact(std::vector<T>(size));
  }

 private:
  template <class T>
  T* block(const T* from, int64_t size, int64_t kept) {
    T* to = static_cast<T*>(std::malloc(kept * sizeof(T)));
    held_.emplace_back(to, std::free);
    std::memcpy(static_cast<void*>(to), from, std::min(size, kept) * sizeof(T));
    return to;
  }

  std::vector<std::unique_ptr<void, void (*)(void*)>> held_;
};

// Storage elements of random numbers, and the numbers.
struct Numbers {
  Matrix matrix;
  Numbers(Run& run, int64_t size, DType dtype) : matrix(Matrix::random(run, size, 1, dtype, false)) {}
  double operator[](int64_t i) const { return matrix.values[i]; }
  void* exact(Blocks& to) const { return to.exact(matrix.storage); }
};

std::vector<float> random_floats(Run& run, int64_t size) {
  std::vector<float> x(size);
  for (float& v : x) v = run.normal();
  return x;
}

const KernelTable& any_table(Run& run) { return *kTables[run.random() % std::size(kTables)]; }
DType any_float(Run& run) { return run.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16}); }

// fn(begin, end) on a few threads.
template <class Function>
void parallel(Run& run, int64_t size, const Function& fn) {
  const int64_t parts = run.integer(1, 3);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; ++i) {
    threads.emplace_back([&, i] { fn(size * i / parts, size * (i + 1) / parts); });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- decode_step

template <class Body>
void run_team(int64_t size, const Body& body) {
  Barrier barrier;
  const auto wait = [](void* b, int64_t members) { static_cast<Barrier*>(b)->wait(members); };
  const auto pass = [](void*, int64_t) {};
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      no_barrier ? body(Team{rank, size, &barrier, pass}) : body(Team{rank, size, &barrier, wait});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

MatrixView exact(Blocks& to, const Matrix& m) {
  MatrixView v = m.at();
  v.weight = to.exact(m.storage);
  v.scales = v.scales ? to.exact(m.scales) : nullptr;
  v.bias = to.exact(m.bias);
  return v;
}

NormView exact(Blocks& to, const Norm& n) { return {to.exact(n.weight), to.exact(n.bias), 1e-5f}; }

// Only rows that are not idle reach the kernel, the last one first.
void keep_busy_rows(DecodeParams& p, Model& m) {
  const auto is_idle = [&](int64_t slot) { return m.lengths[slot] < 0; };
  m.slots.erase(std::remove_if(m.slots.begin(), m.slots.end(), is_idle), m.slots.end());
  std::reverse(m.slots.begin(), m.slots.end());
  p.slots = m.slots.data();
  p.batch = int64_t(m.slots.size());
}

void decode_steps(Run& run) {
  const KernelTable& table = any_table(run);
  Model m = random_model(run, run.integer(1, 3), run.pick<int64_t>({1, 3, 8, 20, 33}));
  if (m.width() < 3) return;  // a row of two has no variance but its sign: rounding decides
  m.batch = run.pick<int64_t>({1, 1, 2, 4, 7});
  m.inner = run.pick<int64_t>({4 * m.width(), m.width() - 1, 70});
  for (Layer& layer : m.layers) {
    layer.mlp_in = Matrix::random(run, m.inner, m.width(), m.weights, run.coin());
    layer.mlp_out = Matrix::random(run, m.width(), m.inner, m.weights, run.coin());
  }
  // The cache and the positions end with this step, and every id is the last one.
  m.capacity = run.integer(m.tokens, 70);
  set_lengths(run, m);
  m.lengths[0] = m.capacity - m.tokens;
  m.positions = Matrix::random(run, m.capacity, m.width(), m.tables, false);
  std::vector<int64_t> ids(m.batch * m.tokens, m.vocabulary - 1);
  Caches caches = random_caches(run, m);
  std::vector<DecodeLayer> layers;
  std::vector<CacheView> views;
  DecodeParams p = decode_params(m, caches, layers, views);
  Blocks to;
  for (size_t i = 0; i < m.layers.size(); ++i) {
    const Layer& from = m.layers[i];
    layers[i] = {exact(to, from.norm_1), exact(to, from.qkv),    exact(to, from.attention_out),
                 exact(to, from.norm_2), exact(to, from.mlp_in), exact(to, from.mlp_out)};
    views[i].keys = to.exact(caches.storage[2 * i]);
    views[i].values = to.exact(caches.storage[2 * i + 1]);
  }
  p.norm_final = exact(to, m.norm_final);
  p.head = exact(to, m.head);
  p.token_table = to.exact(m.token_table.storage);
  p.positions = to.exact(m.positions.storage);
  p.ids = to.exact(ids);
  keep_busy_rows(p, m);
  p.logits = to.result<float>(p.batch * m.tokens * m.head_rows);
  const int64_t threads = run.pick<int64_t>({1, 2, 3, 7});
  p.scratch = to.empty<float>(table.decode_scratch(p, threads));
  run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t t = 0; t < m.tokens; ++t) {
      const std::vector<double> expected = reference_logits(m, caches, m.slots[b], t, ids[0]);
      double scale = 1;
      for (const double x : expected) scale = std::max(scale, std::fabs(x));
      double tolerance = m.cache == DType::kFloat32 ? 2e-5 : m.cache == DType::kFloat16 ? 1e-2 : 4e-2;
      if (m.weights == DType::kInt8) tolerance += 2e-3;
      for (int64_t n = 0; n < m.head_rows; ++n) {
        run.expect_close(p.logits[(b * m.tokens + t) * m.head_rows + n], expected[n], scale, tolerance,
                         "logit " + std::to_string(n));
      }
    }
  }
}

// Two teams at once on one model, as two generations have it, each with a cache and scratch of its own.
void two_teams(Run& run) {
  const KernelTable& table = any_table(run);
  Model m = random_model(run, 2, 8);
  for (int64_t& length : m.lengths) length = std::max<int64_t>(length, 0);
  const std::vector<int64_t> ids(m.batch * m.tokens, 1);
  Caches caches[2] = {random_caches(run, m), {}};
  caches[1] = caches[0];
  std::vector<float> logits[2];
  const auto generate = [&](int i, int64_t threads) {
    std::vector<DecodeLayer> layers;
    std::vector<CacheView> views;
    DecodeParams p = decode_params(m, caches[i], layers, views);
    logits[i].resize(m.batch * m.tokens * m.head_rows);
    p.ids = ids.data();
    p.logits = logits[i].data();
    std::vector<float> scratch(table.decode_scratch(p, threads));
    p.scratch = scratch.data();
    run_team(threads, [&](const Team& team) { table.decode_step(p, team); });
  };
  std::thread other(generate, 0, 3);
  generate(1, 2);
  other.join();
  run.expect(logits[0] == logits[1], "two teams of different sizes agree to the bit");
  run.expect(caches[0].storage == caches[1].storage, "and so do their caches");
}

// ---- attention over a cache

// Strides of [batch, a, b, depth] numbers in which a comes before b, or after it.
void fill_strides(int64_t (&strides)[3], int64_t a, int64_t b, int64_t depth) {
  strides[0] = a * b * depth;
  strides[1] = b * depth;
  strides[2] = depth;
}

// softmax(query * key^T * scale) * value of one query over `count` positions; key and value give (position,
// d).
template <class Query, class Key, class Value>
std::vector<double> attend(const Query& query, const Key& key, const Value& value, int64_t count,
                           int64_t depth) {
  std::vector<double> out(depth);
  double total = 0;
  for (int64_t s = 0; s < count; ++s) {
    double score = 0;
    for (int64_t d = 0; d < depth; ++d) score += query(d) * key(s, d);
    const double weight = std::exp(score / std::sqrt(double(depth)));
    total += weight;
    for (int64_t d = 0; d < depth; ++d) out[d] += weight * value(s, d);
  }
  for (double& x : out) x /= total;
  return out;
}

void attention(Run& run) {
  const KernelTable& table = any_table(run);
  AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 3);
  p.head_dim = run.pick<int64_t>({1, 3, 8, 16, 20, 32, 64, 65, 130});
  const bool block = run.coin();
  p.tokens = block ? run.pick<int64_t>({1, 2, 33, 64, 65, 100}) : run.integer(1, 3);
  const int64_t longest = run.size(220) - 1;
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < p.batch; ++b) lengths.push_back(b > 0 ? run.integer(-1, longest) : longest);
  p.lengths = lengths.data();
  p.longest = longest;
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = any_float(run);
  const int64_t width = p.heads * p.head_dim, capacity = p.keys = longest + p.tokens;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.value_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_cache_strides, p.heads, capacity, p.head_dim);
  fill_strides(p.value_cache_strides, p.heads, capacity, p.head_dim);
  const int64_t rows = p.batch * p.tokens;
  Numbers query(run, rows * width, p.dtype), key(run, rows * width, p.dtype),
      value(run, rows * width, p.dtype);
  Numbers keys(run, p.batch * capacity * width, p.dtype), values(run, p.batch * capacity * width, p.dtype);
  Blocks to;
  p.query = query.exact(to);
  p.key = key.exact(to);
  p.value = value.exact(to);
  p.key_cache = keys.exact(to);
  p.value_cache = values.exact(to);
  p.out = to.exact(query.matrix.storage);
  const int64_t pairs = p.batch * p.heads;
  if (block) {
    const int64_t tasks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
    parallel(run, pairs, [&](int64_t begin, int64_t end) { table.attention_append(p, begin, end); });
    parallel(run, pairs * tasks, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(table.attention_scratch(p));
      table.attention_block(p, begin, end, scratch.data());
    });
  } else {
    parallel(run, pairs, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(table.attention_scratch(p));
      table.attention_decode(p, begin, end, scratch.data());
    });
  }
  const double tolerance = p.dtype == DType::kFloat32 ? 2e-6 : p.dtype == DType::kFloat16 ? 1e-3 : 8e-3;
  for (int64_t i = 0; i < rows * p.heads; ++i) {
    const int64_t h = i % p.heads, row = i / p.heads, t = row % p.tokens, b = row / p.tokens;
    if (lengths[b] < 0) continue;
    // Element d of position s: from the cache, or among the new tokens.
    const auto at = [&](const Numbers& old, const Numbers& fresh) {
      return [&, h, b](int64_t s, int64_t d) {
        return s < lengths[b] ? old[((b * p.heads + h) * capacity + s) * p.head_dim + d]
                              : fresh[((b * p.tokens + s - lengths[b]) * p.heads + h) * p.head_dim + d];
      };
    };
    const auto expected = attend([&](int64_t d) { return query[i * p.head_dim + d]; }, at(keys, key),
                                 at(values, value), lengths[b] + t + 1, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      double got = 0;
      with_float_type(p.dtype, [&](auto zero) {
        got = to_float(static_cast<decltype(zero)*>(p.out)[i * p.head_dim + d]);
      });
      run.expect_close(got, expected[d], 1, tolerance, "attention " + std::to_string(i));
    }
  }
}

// The blocks alone, over keys and values of one projection, of which every query sees all or those before it.
void attention_anywhere(Run& run) {
  const KernelTable& table = any_table(run);
  AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 3);
  p.head_dim = run.pick<int64_t>({1, 3, 16, 20, 32, 64, 65});
  p.tokens = run.pick<int64_t>({1, 2, 33, 64, 65, 100});
  p.keys = p.tokens + run.size(200) - 1;
  const bool causal = run.coin();
  const std::vector<int64_t> lengths(p.batch, causal ? p.keys - p.tokens : p.keys);
  p.lengths = lengths.data();
  p.longest = lengths[0];
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = DType::kFloat32;
  const int64_t width = p.heads * p.head_dim;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  for (int64_t* strides : {p.key_cache_strides, p.value_cache_strides}) {  // [B, S, H, D]
    strides[0] = p.keys * width;
    strides[1] = p.head_dim;
    strides[2] = width;
  }
  const std::vector<float> query = random_floats(run, p.batch * p.tokens * width);
  Numbers keys(run, p.batch * p.keys * width, p.dtype), values(run, p.batch * p.keys * width, p.dtype);
  Blocks to;
  p.query = to.exact(query);
  p.key_cache = keys.exact(to);
  p.value_cache = values.exact(to);
  p.out = to.result<float>(p.batch * p.tokens * width);
  const int64_t tasks = (p.tokens + table.attention_block_queries - 1) / table.attention_block_queries;
  parallel(run, p.batch * p.heads * tasks, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.attention_scratch(p));
    table.attention_block(p, begin, end, scratch.data());
  });
  for (int64_t i = 0; i < p.batch * p.tokens * p.heads; ++i) {
    const int64_t h = i % p.heads, t = i / p.heads % p.tokens, b = i / p.heads / p.tokens;
    const auto at = [&](const Numbers& x) {
      return [&, h, b](int64_t s, int64_t d) { return x[((b * p.keys + s) * p.heads + h) * p.head_dim + d]; };
    };
    const int64_t seen = causal ? lengths[b] + t + 1 : p.keys;
    const auto expected = attend([&](int64_t d) { return double(query[i * p.head_dim + d]); }, at(keys),
                                 at(values), seen, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const float got = static_cast<float*>(p.out)[i * p.head_dim + d];
      run.expect_close(got, expected[d], 1, 2e-6, "attention anywhere " + std::to_string(i));
    }
  }
}

void int16_attention(Run& run) {
  const KernelTable& table = any_table(run);
  Int16AttentionParams p{};
  p.batch = run.integer(1, 2);
  p.heads = run.integer(1, 2);
  p.head_dim = run.pick<int64_t>({1, 3, 16, 20, 64, 65});
  p.tokens = run.pick<int64_t>({1, 2, 5, 17});
  p.keys = p.tokens + run.size(300) - 1;
  p.causal = run.coin();
  p.scale = float(1 / std::sqrt(double(p.head_dim)));
  p.dtype = any_float(run);
  const int64_t width = p.heads * p.head_dim;
  fill_strides(p.query_strides, p.tokens, p.heads, p.head_dim);
  fill_strides(p.key_strides, p.heads, p.keys, p.head_dim);
  fill_strides(p.value_strides, p.heads, p.keys, p.head_dim);
  const std::vector<float> query = random_floats(run, p.batch * p.tokens * width);
  Numbers keys(run, p.batch * p.keys * width, p.dtype), values(run, p.batch * p.keys * width, p.dtype);
  Blocks to;
  p.query = to.exact(query);
  p.key = keys.exact(to);
  p.value = values.exact(to);
  p.out = to.result<float>(p.batch * p.tokens * width);
  p.packed = to.empty<int32_t>(table.int16_attention_packed_bytes(p) / 4);
  const int64_t pairs = p.batch * p.heads, groups = (p.keys + table.int16_group - 1) / table.int16_group;
  const int64_t panels = (p.tokens + table.int16_panel_rows - 1) / table.int16_panel_rows;
  parallel(run, pairs * groups,
           [&](int64_t begin, int64_t end) { table.int16_attention_pack(p, begin, end); });
  parallel(run, pairs * panels, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.int16_attention_scratch(p));
    table.int16_attention(p, begin, end, scratch.data());
  });
  for (int64_t i = 0; i < p.batch * p.tokens * p.heads; ++i) {
    const int64_t h = i % p.heads, row = i / p.heads, base = (row / p.tokens * p.heads + h) * p.keys;
    const auto at = [&](const Numbers& x) {
      return [&, base](int64_t s, int64_t d) { return x[(base + s) * p.head_dim + d]; };
    };
    const int64_t seen = p.causal ? p.keys - p.tokens + row % p.tokens + 1 : p.keys;
    const auto expected = attend([&](int64_t d) { return double(query[i * p.head_dim + d]); }, at(keys),
                                 at(values), seen, p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      run.expect_close(p.out[i * p.head_dim + d], expected[d], 1, 1e-3,
                       "int16 attention " + std::to_string(i));
    }
  }
}

// ---- products, embeddings

// int16_linear, or int8_linear beside int8 weights.
void int_linear(Run& run, bool int8) {
  const KernelTable& table = any_table(run);
  IntLinearParams p{};
  p.rows = run.size(60);
  p.columns = run.size(80);
  p.inner = run.size(600);
  p.input_stride = p.weight_stride = p.inner;
  p.gelu = run.coin();
  const DType any = run.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8});
  const DType dtype = int8 ? DType::kInt8 : any;
  p.dtype = dtype == DType::kInt8 ? DType::kFloat32 : dtype;
  const Matrix weight = Matrix::random(run, p.columns, p.inner, dtype, run.coin());
  const std::vector<float> input = random_floats(run, p.rows * p.inner);
  Blocks to;
  const MatrixView view = exact(to, weight);
  p.weight = view.weight;
  p.bias = view.bias;
  p.scales = view.scales;
  p.scales_stride = view.scale_stride;
  p.input = to.exact(input);
  p.out = to.result<float>(p.rows * p.columns);
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  if (run.coin()) {
    const int64_t group = int8 ? kInt8Group : table.int16_group;
    const int64_t rows =
        (int8 ? table.int8_column_rows : table.int16_column_rows) * table.int16_panel_columns;
    int32_t* panels = to.empty<int32_t>(column_panels * ((p.inner + group - 1) / group) * rows);
    parallel(run, column_panels, [&](int64_t begin, int64_t end) {
      (int8 ? table.int8_pack_columns : table.int16_pack_columns)(p, begin, end, panels);
    });
    p.panels = panels;
    p.weight = nullptr;
    p.scales = nullptr;
  }
  p.packed = to.empty<int32_t>((int8 ? table.int8_packed_bytes : table.int16_packed_bytes)(p) / 4);
  parallel(run, row_panels, [&](int64_t begin, int64_t end) {
    (int8 ? table.int8_pack_rows : table.int16_pack_rows)(p, begin, end);
  });
  parallel(run, column_panels * p.row_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch((int8 ? table.int8_scratch : table.int16_scratch)(p));
    (int8 ? table.int8_multiply : table.int16_multiply)(p, begin, end, scratch.data());
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> x(input.begin() + r * p.inner, input.begin() + (r + 1) * p.inner);
    const std::vector<double> expected = weight.times(x);
    for (int64_t n = 0; n < p.columns; ++n) {
      double squares = 0;
      for (int64_t k = 0; k < p.inner; ++k) squares += std::pow(x[k] * weight.values[n * p.inner + k], 2);
      const double gelu = 0.5 * expected[n] * (1 + std::erf(expected[n] / std::sqrt(2.0)));
      run.expect_close(p.out[r * p.columns + n], p.gelu ? gelu : expected[n], 1 + std::sqrt(squares),
                       int8 ? 5e-2 : 1e-3, "product " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

// Every number is the largest there is, so are the sums: what saturates, or leaves int32, is far off.
void largest_integers(Run& run) {
  const KernelTable& table = any_table(run);
  const bool int8 = run.coin();
  const int64_t rows = run.size(30), columns = run.size(70), inner = run.size(600);
  const float x = run.pick({127.0f, -127.0f});
  const int8_t w = run.pick<int8_t>({127, -127, -128});
  Blocks to;
  IntLinearParams p{};
  p.rows = rows;
  p.columns = columns;
  p.inner = p.input_stride = p.weight_stride = inner;
  p.dtype = DType::kFloat32;
  p.input = to.exact(std::vector<float>(rows * inner, x));
  p.weight = to.exact(std::vector<int8_t>(columns * inner, w));
  p.scales_stride = ceil_div(inner, kInt8Group);
  p.scales = to.exact(std::vector<float>(columns * p.scales_stride, 1.0f));
  p.out = to.result<float>(rows * columns);
  p.row_parts = 1;
  p.packed = to.empty<int32_t>((int8 ? table.int8_packed_bytes : table.int16_packed_bytes)(p) / 4);
  (int8 ? table.int8_pack_rows : table.int16_pack_rows)(p, 0, ceil_div(rows, table.int16_panel_rows));
  std::vector<float> scratch((int8 ? table.int8_scratch : table.int16_scratch)(p));
  const int64_t tasks = ceil_div(columns, table.int16_panel_columns);
  (int8 ? table.int8_multiply : table.int16_multiply)(p, 0, tasks, scratch.data());
  const double expected = double(x) * w * double(inner);
  for (int64_t i = 0; i < rows * columns; ++i) {
    run.expect_close(p.out[i], expected, std::fabs(expected), int8 ? 1e-7 : 1e-3,
                     "largest integers " + std::to_string(i));
  }
}

void int16_linear(Run& run) { int_linear(run, false); }
void int8_linear(Run& run) { int_linear(run, true); }

void float32_linear(Run& run) {
  const KernelTable& table = any_table(run);
  Float32LinearParams p{};
  p.rows = run.size(60);
  p.columns = p.residual_stride = run.size(80);
  p.inner = p.input_stride = p.weight_stride = run.size(600);
  p.gelu = run.coin();
  const Matrix weight = Matrix::random(run, p.columns, p.inner, DType::kFloat32, run.coin());
  const std::vector<float> input = random_floats(run, p.rows * p.inner);
  const std::vector<float> residual =
      run.coin() ? random_floats(run, p.rows * p.columns) : std::vector<float>();
  Blocks to;
  const MatrixView view = exact(to, weight);
  p.weight = static_cast<const float*>(view.weight);
  p.bias = view.bias;
  p.input = to.exact(input);
  p.residual = to.exact(residual);
  p.out = to.result<float>(p.rows * p.columns);
  const int64_t row_panels = (p.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (p.columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  p.packed = to.empty<float>(table.float32_packed(p));
  parallel(run, row_panels, [&](int64_t begin, int64_t end) { table.float32_pack_rows(p, begin, end); });
  parallel(run, column_panels * p.row_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.float32_scratch(p));
    table.float32_multiply(p, begin, end, scratch.data());
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> x(input.begin() + r * p.inner, input.begin() + (r + 1) * p.inner);
    const std::vector<double> products = weight.times(x);
    for (int64_t n = 0; n < p.columns; ++n) {
      double squares = 0;
      for (int64_t k = 0; k < p.inner; ++k) squares += std::pow(x[k] * weight.values[n * p.inner + k], 2);
      double expected = products[n];
      if (p.gelu) expected *= 0.5 * (1 + std::erf(expected / std::sqrt(2.0)));
      if (p.residual) expected += residual[r * p.columns + n];
      run.expect_close(p.out[r * p.columns + n], expected, 1 + std::sqrt(squares), 5e-6,
                       "float32 product " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

void embedding_sums(Run& run) {
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

// ---- sampling

uint32_t tempered(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// A generator's state as it is seeded, and `count` words after it.
std::vector<uint32_t> seeded_words(const KernelTable& table, uint32_t seed, int64_t count) {
  std::vector<uint32_t> words(kMt19937Block + count);
  words[0] = seed;
  for (uint32_t i = 1; i < kMt19937Block; ++i) {
    words[i] = 1812433253u * (words[i - 1] ^ (words[i - 1] >> 30)) + i;
  }
  Blocks to;
  uint32_t* extended = to.exact(words);
  table.mt19937_extend(extended, count);
  return {extended + kMt19937Block, extended + words.size()};
}

void generators(Run& run) {
  const KernelTable& table = any_table(run);
  const auto seed = uint32_t(run.random());
  std::mt19937 expected(seed);
  const std::vector<uint32_t> words = seeded_words(table, seed, kMt19937Block * run.integer(1, 3));
  for (const uint32_t word : words) run.expect(tempered(word) == expected(), "MT19937");
}

double noise_of(const uint32_t* words) {
  const uint64_t bits = uint64_t(tempered(words[0])) << 32 | tempered(words[1]);
  return -std::log1p(-double(bits & ((uint64_t(1) << 53) - 1)) * 0x1p-53);
}

// What top-k and top-p leave of the scores; of several scores at the edge of top-p all, or none.
std::vector<bool> survivors(const std::vector<double>& scores, int64_t top_k, double top_p, bool edge) {
  std::vector<double> sorted(scores);
  std::sort(sorted.begin(), sorted.end());
  const auto count = int64_t(scores.size());
  double low = top_k > 0 && top_k < count ? sorted[count - top_k] : sorted[0], total = 0, below = 0;
  for (const double x : sorted) total += x < low ? 0 : std::exp(x - sorted.back());
  for (const double x : sorted) {
    if (x < low || top_p >= 1) continue;
    below += std::exp(x - sorted.back()) / total;
    low = x;
    if (below > 1 - top_p) break;
  }
  std::vector<bool> kept;
  for (const double x : scores) kept.push_back(x > low || (x == low && edge));
  return kept;
}

void samples(Run& run) {
  const KernelTable& table = any_table(run);
  const int64_t columns = run.size(700) + 2, vocabulary = columns + run.integer(0, 3);
  SampleParams p{};
  p.dtype = any_float(run);
  p.row_stride = columns;
  p.first_id = vocabulary - columns;
  p.begin = run.integer(0, columns - 2);
  p.end = run.coin() ? columns : run.integer(p.begin + 1, columns);
  p.eos = p.end < columns ? columns - 1 : run.pick<int64_t>({-1, 0, columns - 1});
  p.temperature = run.pick<float>({1.0f, 0.7f});
  p.top_k = run.pick<int64_t>({0, 0, 1, 5, 200});
  const double top_p = run.pick({1.0, 0.8, 0.3});
  p.use_top_p = top_p < 1;
  p.top_p_cut = float(1 - top_p);
  p.renormalize = run.coin();
  p.noise_stride = vocabulary;
  const bool greedy = run.integer(0, 3) == 0, lazy = run.coin();
  const Numbers logits(run, columns, p.dtype);
  const auto words = seeded_words(table, uint32_t(run.random()), (2 * vocabulary + 623) / 624 * 624);
  std::vector<float> noise(vocabulary);
  for (int64_t i = 0; i < vocabulary; ++i) noise[i] = float(noise_of(&words[2 * i]));
  Blocks to;
  // The last column is the end of the range, or the eos: always read.
  p.logits = logits.exact(to);
  if (!greedy && lazy)
    p.words = to.roomy(std::vector<uint32_t>(words.begin(), words.begin() + 2 * vocabulary));
  if (!greedy && !lazy) p.noise = to.roomy(noise);
  int64_t id = -1;
  float* scratch = to.empty<float>(table.sample_scratch(p.end - p.begin));
  run.expect(table.sample_row(p, 0, scratch, &id) == SampleStatus::kOk, "a sample is drawn");
  std::vector<int64_t> allowed;
  std::vector<double> scores;
  for (int64_t c = 0; c < columns; ++c) {
    if ((c < p.begin || c >= p.end) && c != p.eos) continue;
    allowed.push_back(c);
    scores.push_back(greedy ? logits[c] : double(float(logits[c]) / p.temperature));
  }
  // Where rounding may move the edge of top-p, either side of it is right.
  const double slack = p.use_top_p ? 1e-4 : 0;
  const auto most =
      greedy ? std::vector<bool>(scores.size(), true) : survivors(scores, p.top_k, top_p + slack, true);
  const auto least = greedy ? most : survivors(scores, p.top_k, top_p - slack, !p.use_top_p);
  const auto value = [&](size_t i) {
    return greedy ? scores[i] : scores[i] - std::log(double(noise[p.first_id + allowed[i]]));
  };
  double best = -1e300, got = -1e300;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (least[i]) best = std::max(best, value(i));
    if (most[i] && p.first_id + allowed[i] == id) got = value(i);
  }
  run.expect(got >= best - 1e-5, "the winner of the race, got id " + std::to_string(id));
}

double elu(double x) { return x > 0 ? x : std::expm1(x); }

void float32_conv(Run& run) {
  const KernelTable& table = any_table(run);
  Float32ConvParams p{};
  Float32LinearParams& product = p.product;
  product.rows = run.size(60);
  product.columns = product.residual_stride = run.coin() ? 1 : run.size(80);
  product.inner = product.input_stride = p.before_stride = run.size(300);
  p.taps = run.integer(1, 7);
  p.dilation = run.integer(1, 3);
  p.elu = run.coin();
  const int64_t left = (p.taps - 1) * p.dilation, channels = product.inner, columns = product.columns;
  const std::vector<float> input = random_floats(run, product.rows * channels);
  const std::vector<float> before = random_floats(run, left * channels);
  const std::vector<float> weight = random_floats(run, p.taps * channels * columns);
  const std::vector<float> bias = run.coin() ? random_floats(run, columns) : std::vector<float>();
  const std::vector<float> residual =
      run.coin() ? random_floats(run, product.rows * columns) : std::vector<float>();
  Blocks to;
  product.input = to.exact(input);
  p.before = to.exact(before);
  product.weight = to.exact(weight);
  product.bias = to.exact(bias);
  product.residual = to.exact(residual);
  product.out = to.result<float>(product.rows * columns);
  const int64_t row_panels = (product.rows + table.int16_panel_rows - 1) / table.int16_panel_rows;
  const int64_t column_panels = (columns + table.int16_panel_columns - 1) / table.int16_panel_columns;
  p.row_parts = std::min<int64_t>(row_panels, run.integer(1, 3));
  p.column_parts = std::min<int64_t>(column_panels, run.integer(1, 2));
  parallel(run, p.row_parts * p.column_parts, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(table.float32_conv_scratch(p));
    table.float32_conv(p, begin, end, scratch.data());
  });
  std::vector<float> joined(before);
  joined.insert(joined.end(), input.begin(), input.end());
  for (int64_t r = 0; r < product.rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) {
      double sum = bias.empty() ? 0 : bias[n], squares = 0;
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        for (int64_t c = 0; c < channels; ++c) {
          const double x = joined[(r + tap * p.dilation) * channels + c];
          const double term = (p.elu ? elu(x) : x) * weight[(tap * channels + c) * columns + n];
          sum += term;
          squares += term * term;
        }
      }
      if (!residual.empty()) sum += residual[r * columns + n];
      run.expect_close(product.out[r * columns + n], sum, 1 + std::sqrt(squares), 5e-6,
                       "output " + std::to_string(r) + ", " + std::to_string(n));
    }
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A row's hidden and cell state after one more step, in double precision.
void step_units(const LstmParams& p, int64_t row, int64_t step, std::vector<double>& hidden,
                std::vector<double>& cell) {
  const std::vector<double> before = hidden;
  for (int64_t u = 0; u < p.size; ++u) {
    double sums[4];
    for (int64_t gate = 0; gate < 4; ++gate) {
      sums[gate] = p.gates[((row * p.steps + step) * 4 + gate) * p.size + u];
      for (int64_t k = 0; k < p.size; ++k) {
        const int64_t place = (u / kLstmUnits * p.size + k) * 4 + gate;
        sums[gate] += before[k] * p.weight[place * kLstmUnits + u % kLstmUnits];
      }
    }
    cell[u] = sigmoid(sums[1]) * cell[u] + sigmoid(sums[0]) * std::tanh(sums[2]);
    hidden[u] = sigmoid(sums[3]) * std::tanh(cell[u]);
  }
}

void lstm_layer(Run& run) {
  const KernelTable& table = any_table(run);
  LstmParams p{};
  p.batch = run.integer(1, 5);
  p.steps = run.integer(1, 6);
  p.size = kLstmUnits * run.integer(1, 4);
  const std::vector<float> gates = random_floats(run, p.batch * p.steps * 4 * p.size);
  std::vector<float> weight = random_floats(run, 4 * p.size * p.size);
  for (float& w : weight) w /= std::sqrt(float(p.size));
  const std::vector<float> first_hidden = random_floats(run, p.batch * p.size);
  const std::vector<float> first_cell = random_floats(run, p.batch * p.size);
  Blocks to;
  p.gates = to.exact(gates);
  p.weight = to.exact(weight);
  p.hidden = to.exact(first_hidden);
  p.cell = to.exact(first_cell);
  p.out = to.result<float>(p.batch * p.steps * p.size);
  run_team(run.integer(1, 3), [&](const Team& team) { table.lstm_layer(p, team); });
  for (int64_t row = 0; row < p.batch; ++row) {
    const int64_t begin = row * p.size, end = begin + p.size;
    std::vector<double> hidden(first_hidden.begin() + begin, first_hidden.begin() + end);
    std::vector<double> cell(first_cell.begin() + begin, first_cell.begin() + end);
    for (int64_t step = 0; step < p.steps; ++step) {
      step_units(p, row, step, hidden, cell);
      const float* out = p.out + (row * p.steps + step) * p.size;
      for (int64_t u = 0; u < p.size; ++u) run.expect_close(out[u], hidden[u], 1, 1e-5, "a hidden unit");
    }
    for (int64_t u = 0; u < p.size; ++u) {
      run.expect_close(p.hidden[begin + u], hidden[u], 1, 1e-5, "the last hidden unit");
      run.expect_close(p.cell[begin + u], cell[u], 1, 1e-5, "the last cell");
    }
  }
}

constexpr Case kCases[] = {
    {"decode_step", 60, true, decode_steps},      {"two teams", 6, true, two_teams},
    {"attention", 40, true, attention},           {"int16_attention", 24, true, int16_attention},
    {"int16_linear", 24, true, int16_linear},     {"int8_linear", 24, true, int8_linear},
    {"float32_linear", 24, true, float32_linear}, {"attention anywhere", 24, true, attention_anywhere},
    {"embedding_sum", 40, true, embedding_sums},  {"MT19937", 4, true, generators},
    {"sample_row", 150, true, samples},           {"largest integers", 24, true, largest_integers},
    {"float32_conv", 24, true, float32_conv},     {"lstm_layer", 24, true, lstm_layer},
};

// Whether a child dies of an element that is missing; its report goes nowhere.
bool dies(const Case& test, unsigned seed, int64_t without) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(3);
    emulator::Session session;
    int64_t checks = 0;
    short_block = without;
    blocks = 0;
    _exit(run_case(test, session, seed, true, &checks) ? 2 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2));
}

int shorten_blocks(int64_t step) {
  int64_t tried = 0, survivors = 0;
  for (const Case& test : kCases) {
    emulator::Session session;
    int64_t checks = 0;
    short_block = -1;
    blocks = 0;
    if (run_case(test, session, 0, false, &checks)) return 1;
    const int64_t count = blocks;
    for (int64_t i = 0; i < count; i += step, ++tried) {
      if (dies(test, 0, i)) continue;
      std::fprintf(stderr, "nobody noticed: %s, block %lld\n", test.name, (long long)i);
      ++survivors;
    }
  }
  std::printf("%lld blocks too short, %lld not noticed\n", (long long)tried, (long long)survivors);
  return survivors || !tried;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  no_barrier = mode == "--no-barrier";
  if (mode == "--short") return shorten_blocks(argc > 2 ? std::atoll(argv[2]) : 1);
  return run_all(kCases, int(std::size(kCases)), mode);
}
