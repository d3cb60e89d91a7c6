// csrc/cuda/attention.cuh against double precision.
#include "attention.cuh"

#include "support.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

struct Shape {
  int64_t batch, tokens, heads, head_dim, capacity;
  std::vector<int64_t> lengths;
  int64_t splits;
};

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 4 ? DType::kFloat32 : std::is_same_v<T, Half> ? DType::kFloat16 : DType::kBFloat16;
}

// Weighted values of one query over `end` positions, and the sum of the weights' absolute products.
template <class Cache>
void reference(const Buffer<Cache>& keys, const Buffer<Cache>& values, int64_t base, int64_t stride,
               const std::vector<double>& query, int64_t end, int64_t d, double* out, double* scale) {
  const int64_t size = int64_t(query.size());
  std::vector<double> scores(end);
  double top = -INFINITY, total = 0;
  for (int64_t i = 0; i < end; ++i) {
    for (int64_t e = 0; e < size; ++e)
      scores[i] += query[e] * keys[base + i * stride + e] / std::sqrt(double(size));
    top = std::max(top, scores[i]);
  }
  *out = *scale = 0;
  for (int64_t i = 0; i < end; ++i) total += std::exp(scores[i] - top);
  for (int64_t i = 0; i < end; ++i) {
    const double term = std::exp(scores[i] - top) / total * values[base + i * stride + d];
    *out += term;
    *scale += std::fabs(term);
  }
}

template <class Source, class Cache>
void check(Run& run, Shape s) {
  const int64_t width = s.heads * s.head_dim, rows = s.batch * s.tokens;
  const int64_t stride = s.head_dim + run.pick<int64_t>({0, 0, 3, 8});
  const int64_t cache_size = s.batch * s.heads * s.capacity * stride;
  Buffer<Source> qkv = Buffer<Source>::normal(run, rows * 3 * width, 1.5f);
  Buffer<Cache> keys = Buffer<Cache>::normal(run, cache_size, 1.0f, run.integer(0, 4) == 0);
  Buffer<Cache> values = Buffer<Cache>::normal(run, cache_size);
  Buffer<Cache> keys_before(cache_size), values_before(cache_size);
  std::memcpy(static_cast<void*>(keys_before.data()), keys.data(), cache_size * sizeof(Cache));
  std::memcpy(static_cast<void*>(values_before.data()), values.data(), cache_size * sizeof(Cache));
  Buffer<float> shares(rows * width * s.splits), stats(rows * s.heads * s.splits * 2);
  Buffer<Source> out(rows * width);
  AttentionSplitParams p{};
  p.query = qkv.data();
  p.key = qkv.data() + width;
  p.value = qkv.data() + 2 * width;
  const int64_t strides[3] = {s.tokens * 3 * width, 3 * width, s.head_dim};
  const int64_t cache_strides[3] = {s.heads * s.capacity * stride, s.capacity * stride, stride};
  p.cache.keys = keys.data();
  p.cache.values = values.data();
  for (int i = 0; i < 3; ++i) {
    p.query_strides[i] = p.key_strides[i] = p.value_strides[i] = strides[i];
    p.cache.key_strides[i] = p.cache.value_strides[i] = cache_strides[i];
  }
  p.lengths = s.lengths.data();
  p.batch = s.batch;
  p.tokens = s.tokens;
  p.heads = s.heads;
  p.head_dim = s.head_dim;
  p.capacity = s.capacity;
  p.splits = s.splits;
  p.aligned = cache_aligned(p.cache, sizeof(Cache));
  p.shares = shares.data();
  p.stats = stats.data();
  launch_attention_split(run.executor, p, dtype_of<Source>(), dtype_of<Cache>());
  launch_attention_combine(run.executor,
                           {shares.data(), stats.data(), rows * s.heads, s.head_dim, s.splits, out.data()},
                           dtype_of<Source>());

  const auto fits = [&](int64_t b) { return s.lengths[b] >= 0 && s.lengths[b] + s.tokens <= s.capacity; };
  const double rounding = sizeof(Source) == 4 ? 0 : std::is_same_v<Source, Half> ? 0x1p-11 : 0x1p-8;
  std::string shape;
  for (const int64_t n : {s.batch, s.tokens, s.heads, s.head_dim, s.capacity, s.splits}) {
    shape += std::to_string(n) + " ";
  }
  for (const int64_t n : s.lengths) shape += "at " + std::to_string(n) + " ";
  for (int64_t i = 0; i < cache_size; ++i) {
    const int64_t b = i / cache_strides[0];
    const int64_t at = i / stride % s.capacity, t = at - s.lengths[b], d = i % stride;
    const bool is_new = fits(b) && 0 <= t && t < s.tokens && d < s.head_dim;
    const int64_t h = i / cache_strides[1] % s.heads;
    const int64_t source = (b * s.tokens + t) * 3 * width + h * s.head_dim + d;
    const double key = is_new ? to_float(from_float<Cache>(float(qkv[source + width]))) : keys_before[i];
    const double value =
        is_new ? to_float(from_float<Cache>(float(qkv[source + 2 * width]))) : values_before[i];
    run.expect(keys[i] == key && values[i] == value, "cache " + shape);
  }
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t row = i / width, h = i / s.head_dim % s.heads, d = i % s.head_dim, t = row % s.tokens;
    double expected = NAN, scale = 1;
    if (fits(row / s.tokens)) {
      std::vector<double> query(s.head_dim);
      for (int64_t e = 0; e < s.head_dim; ++e) query[e] = qkv[row * 3 * width + h * s.head_dim + e];
      reference(keys, values, row / s.tokens * cache_strides[0] + h * cache_strides[1], stride, query,
                s.lengths[row / s.tokens] + t + 1, d, &expected, &scale);
    }
    run.expect_close(out[i], expected, scale, 5e-6 + rounding, "attention " + shape);
  }
}

void check_types(Run& run, const Shape& s) {
  switch (run.integer(0, 4)) {
    case 0:
      return check<float, float>(run, s);
    case 1:
      return check<float, Half>(run, s);
    case 2:
      return check<float, BFloat16>(run, s);
    case 3:
      return check<Half, Half>(run, s);
    default:
      return check<BFloat16, BFloat16>(run, s);
  }
}

void check_shape(Run& run, int64_t tokens, int64_t heads, int64_t head_dim, int64_t capacity,
                 const std::vector<int64_t>& lengths) {
  const int64_t batch = int64_t(lengths.size());
  const int64_t fewest = ceil_div(capacity, kMostPositions);
  const int64_t splits =
      run.coin() ? attention_splits(batch, heads, capacity) : std::max(fewest, run.integer(1, 13));
  check_types(run, {batch, tokens, heads, head_dim, capacity, lengths, splits});
}

std::vector<int64_t> random_lengths(Run& run, int64_t rows, int64_t from, int64_t to) {
  std::vector<int64_t> lengths;
  for (int64_t row = 1; row < rows; ++row) lengths.push_back(run.integer(from, to));
  lengths.push_back(to);
  return lengths;
}

void small(Run& run) {
  const int64_t tokens = run.integer(1, 4), longest = run.integer(0, 60);
  check_shape(run, tokens, run.integer(1, 2), run.pick<int64_t>({1, 7, 8, 24, 64}),
              longest + tokens + run.integer(0, 20), random_lengths(run, run.integer(1, 2), 0, longest));
}

void random_shapes(Run& run) {
  const int64_t tokens = run.size(kMostTokens), capacity = std::max(tokens, run.size(1024));
  check_shape(run, tokens, run.integer(1, 3), run.pick<int64_t>({8, 20, 64, 80, 128, 256}), capacity,
              random_lengths(run, run.integer(1, 3), 0, run.integer(0, capacity - tokens)));
}

// The first token of an empty cache, and the last one that fits.
void edges(Run& run) {
  const int64_t capacity = run.pick<int64_t>({1, 31, 33, 256, 257, 1024});
  check_shape(run, 1, 2, 64, capacity, {run.coin() ? 0 : capacity - 1});
}

void bad_lengths(Run& run) {
  const int64_t tokens = run.integer(1, 3), capacity = run.integer(3, 80);
  const int64_t bad = run.coin() ? -run.integer(1, 5) : capacity - tokens + run.integer(1, 5);
  check_shape(run, tokens, 2, 16, capacity,
              run.coin() ? std::vector<int64_t>{0, bad} : std::vector<int64_t>{bad, bad});
}

constexpr Case kCases[] = {
    {"small", 60, true, small},
    {"random shapes", 24, false, random_shapes},
    {"edges", 24, false, edges},
    {"bad lengths", 12, true, bad_lengths},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
