// csrc/cuda/gemv.cuh and numbers.cuh against double precision.
#include "gemv.cuh"

#include "support.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

struct Problem {
  int64_t rows, outputs, depth, stride;
  Buffer<float> x, norm_weight, norm_bias, bias, y;
  bool norm, shift, biased;
  Finish finish;
};

Problem random_problem(Run& run, int64_t rows, int64_t outputs, int64_t depth) {
  const int64_t stride = depth + run.pick<int64_t>({0, 0, 1, 16});
  return {rows,
          outputs,
          depth,
          stride,
          Buffer<float>::normal(run, rows * depth, 3.0f),
          Buffer<float>::normal(run, depth),
          Buffer<float>::normal(run, depth),
          Buffer<float>::normal(run, outputs),
          Buffer<float>::normal(run, rows * outputs),
          run.coin(),
          run.coin(),
          run.coin(),
          run.pick({Finish::kStore, Finish::kGelu, Finish::kAdd})};
}

std::vector<double> input_row(const Problem& p, int64_t r) {
  std::vector<double> x(p.depth);
  double mean = 0, variance = 0;
  for (int64_t k = 0; k < p.depth; ++k) mean += (x[k] = p.x[r * p.depth + k]) / double(p.depth);
  if (!p.norm) return x;
  for (const double v : x) variance += (v - mean) * (v - mean) / double(p.depth);
  for (int64_t k = 0; k < p.depth; ++k) {
    x[k] = (x[k] - mean) / std::sqrt(variance + 1e-5) * p.norm_weight[k] + (p.shift ? p.norm_bias[k] : 0);
  }
  return x;
}

double finished(Finish finish, double value, double before) {
  if (finish == Finish::kGelu) return 0.5 * value * (1 + std::erf(value / std::sqrt(2.0)));
  return finish == Finish::kAdd ? value + before : value;
}

// weight(n, k) is the element that the kernel should see.
template <class Weight>
void check(Run& run, Problem& p, MatrixView matrix, Weight weight) {
  std::vector<double> before(p.rows * p.outputs);
  for (size_t i = 0; i < before.size(); ++i) before[i] = p.y[i];
  matrix.bias = p.biased ? p.bias.data() : nullptr;
  GemvParams g{};
  g.matrix = matrix;
  g.outputs = p.outputs;
  g.x = p.x.data();
  g.rows = p.rows;
  g.norm_weight = p.norm ? p.norm_weight.data() : nullptr;
  g.norm_bias = p.norm && p.shift ? p.norm_bias.data() : nullptr;
  g.eps = 1e-5f;
  g.y = p.y.data();
  g.finish = p.finish;
  launch_gemv(run.executor, g);
  if (p.finish == Finish::kStore) {
    // To the bit what the last row gets alone.
    std::vector<float> alone(p.outputs);
    GemvParams last = g;
    last.x = g.x + (p.rows - 1) * p.depth;
    last.y = alone.data();
    last.rows = 1;
    launch_gemv(run.executor, last);
    const float* together = p.y.data() + (p.rows - 1) * p.outputs;
    run.expect(!std::memcmp(alone.data(), together, p.outputs * sizeof(float)), "a row alone");
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> x = input_row(p, r);
    for (int64_t n = 0; n < p.outputs; ++n) {
      double sum = p.biased ? p.bias[n] : 0, scale = 1;
      for (int64_t k = 0; k < p.depth; ++k) {
        sum += weight(n, k) * x[k];
        scale += std::fabs(weight(n, k) * x[k]);
      }
      const int64_t at = r * p.outputs + n;
      run.expect_close(p.y[at], finished(p.finish, sum, before[at]), scale + std::fabs(before[at]), 2e-6,
                       "row " + std::to_string(r) + ", output " + std::to_string(n) + " of " +
                           std::to_string(p.rows) + " x " + std::to_string(p.outputs) + " x " +
                           std::to_string(p.depth));
    }
  }
}

template <class T>
void check_float(Run& run, Problem p, DType dtype) {
  Buffer<T> w = Buffer<T>::normal(run, p.outputs * p.stride, 0.5f, run.integer(0, 3) == 0);
  check(run, p, {w.data(), p.stride, p.depth, dtype, nullptr, 0, 0, nullptr},
        [&](int64_t n, int64_t k) { return w[n * p.stride + k]; });
}

void check_int8(Run& run, Problem p) {
  const int64_t groups = ceil_div(p.depth, kInt8Group), scale_stride = groups + run.coin();
  std::vector<int8_t> w(p.outputs * p.stride + 1);
  for (int8_t& v : w) v = int8_t(run.integer(-127, 127));
  Buffer<float> scales = Buffer<float>::normal(run, p.outputs * scale_stride, 0.01f);
  const int8_t* data = w.data() + run.coin();
  check(run, p, {data, p.stride, p.depth, DType::kInt8, scales.data(), scale_stride, kInt8Group, nullptr},
        [&](int64_t n, int64_t k) {
          return data[n * p.stride + k] * scales[n * scale_stride + k / kInt8Group];
        });
}

void check_any(Run& run, int64_t rows, int64_t outputs, int64_t depth) {
  Problem p = random_problem(run, rows, outputs, depth);
  switch (run.integer(0, 3)) {
    case 0:
      return check_float<float>(run, std::move(p), DType::kFloat32);
    case 1:
      return check_float<Half>(run, std::move(p), DType::kFloat16);
    case 2:
      return check_float<BFloat16>(run, std::move(p), DType::kBFloat16);
    default:
      return check_int8(run, std::move(p));
  }
}

void small_products(Run& run) { check_any(run, run.integer(1, 17), run.size(40), run.size(300)); }

void random_products(Run& run) { check_any(run, run.size(20), run.size(300), run.size(1024)); }

// Mostly in lines of 16 bytes.
void small_deep_products(Run& run) {
  check_any(run, 16, run.integer(1, 20), 16 * run.integer(33, 75) + (run.integer(0, 3) == 0));
}

// More elements than a tile of the shared memory holds, for every number of rows a kernel exists for.
void deep_products(Run& run) { check_any(run, run.pick<int64_t>({1, 2, 4, 8, 16}), 5, 2100); }

void very_deep_product(Run& run) { check_any(run, 1, 3, 8192 + run.integer(1, 600)); }

void square_products(Run& run) { check_any(run, 1, 1024, 1024); }

// Every 16-bit number, and every float that lies between two of them.
void conversions(Run& run) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{uint16_t(bits)};
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double expected = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    if (exponent == 31) expected = mantissa ? NAN : INFINITY;
    const float got = to_float(half);
    run.expect(std::isnan(expected) ? std::isnan(got) : std::fabs(got) == expected, "float of a half");
    run.expect(std::isnan(expected) || from_float<Half>(got).bits == bits, "half of a float");
    run.expect(std::isnan(expected) ||
                   from_float<BFloat16>(to_float(BFloat16{uint16_t(bits)})).bits == bits ||
                   std::isnan(to_float(BFloat16{uint16_t(bits)})),
               "bfloat16 there and back");
    if (exponent == 31 || (bits & 0x8000)) continue;
    const float next = exponent == 30 && mantissa == 1023 ? 65536.0f : to_float(Half{uint16_t(bits + 1)});
    const float middle = (got + next) / 2;
    run.expect(from_float<Half>(std::nextafterf(middle, 0)).bits == bits, "below the middle");
    run.expect(from_float<Half>(std::nextafterf(middle, 1e9f)).bits == bits + 1, "above the middle");
    run.expect(from_float<Half>(middle).bits == bits + (bits & 1), "the middle");
  }
}

constexpr Case kCases[] = {
    {"small products", 60, true, small_products},
    {"small deep products", 16, true, small_deep_products},
    {"random products", 40, false, random_products},
    {"deep products", 16, false, deep_products},
    {"very deep product", 4, false, very_deep_product},
    {"square products", 4, false, square_products},
    {"conversions", 1, false, conversions},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
