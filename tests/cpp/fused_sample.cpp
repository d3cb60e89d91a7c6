// csrc/cuda/fused_sample.cuh against the rules written with a sort, in double precision.
#include "fused_sample.cuh"

#include <numeric>

#include "support.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

struct Options {
  int64_t logits, first_id, begin, end, eos;  // begin, end, eos: columns
  float min_eos_p, temperature;
  int64_t top_k;
  double top_p;
  bool renormalize, greedy;
};

// Index into ids, or -1 where the next best is too close to tell.
int64_t decided(const std::vector<double>& scores) {
  const int64_t best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  for (int64_t i = 0; i < int64_t(scores.size()); ++i) {
    if (i != best && scores[i] > scores[best] * (1 - 1e-5)) return -1;
  }
  return best;
}

// The columns that top-k and top-p leave, or nothing where the cut is too close to tell.
std::vector<int64_t> survivors(const std::vector<double>& x, const Options& o) {
  std::vector<int64_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  if (o.top_k > 0 && o.top_k < int64_t(x.size())) {
    std::vector<double> sorted(x);
    std::sort(sorted.rbegin(), sorted.rend());
    const double kth = sorted[o.top_k - 1];
    order.erase(std::remove_if(order.begin(), order.end(), [&](int64_t i) { return x[i] < kth; }),
                order.end());
  }
  if (o.top_p >= 1) return order;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return x[a] < x[b]; });
  double total = 0, mass = 0;
  for (const int64_t i : order) total += std::exp(x[i] - x[order.back()]);
  size_t first = 0;
  for (; first + 1 < order.size(); ++first) {
    mass += std::exp(x[order[first]] - x[order.back()]) / total;
    if (std::fabs(mass - (1 - o.top_p)) < 1e-6 && o.top_p > 0) return {};
    if (mass > 1 - o.top_p) break;
  }
  order.erase(order.begin(), order.begin() + int64_t(first));
  std::sort(order.begin(), order.end());
  return order;
}

// The id, minus a status, or nothing (false) where double precision cannot tell what float should pick.
bool reference(const Options& o, const std::vector<double>& logits, const std::vector<double>& noise,
               int64_t* id) {
  std::vector<int64_t> columns;
  for (int64_t c = 0; c < o.logits; ++c) {
    if ((o.begin <= c && c < o.end) || c == o.eos) columns.push_back(c);
  }
  std::vector<double> x;
  for (const int64_t c : columns) x.push_back(logits[c]);
  for (const double v : x) {
    if (!(v < INFINITY)) return *id = -int64_t(SampleStatus::kNotFinite), true;
  }
  const double top = *std::max_element(x.begin(), x.end());
  if (top == -INFINITY) return *id = -int64_t(SampleStatus::kAllMasked), true;
  if (o.eos >= 0 && o.min_eos_p > 0) {
    double sum = 0;
    for (const double v : x) sum += std::exp(v - top);
    const double p = std::exp(logits[o.eos] - top) / sum;
    if (std::fabs(p - o.min_eos_p) < 1e-6) return false;
    if (p > o.min_eos_p) return *id = o.first_id + o.eos, true;
  }
  if (o.greedy) {
    *id = o.first_id + columns[std::max_element(x.begin(), x.end()) - x.begin()];
    return true;
  }
  // Rounded as the kernel's scores are: which logits are equal decides about ties.
  for (double& v : x) v = float(v) / o.temperature;
  const std::vector<int64_t> kept = survivors(x, o);
  if (kept.empty()) return false;
  std::vector<double> scores;
  bool positive = false;
  for (const int64_t i : kept) {
    const double q = noise[o.first_id + columns[i]];
    scores.push_back(std::exp(x[i] - top / o.temperature) / q);
    positive |= q > 0;
  }
  if (!positive) return *id = -int64_t(SampleStatus::kBadNoise), true;
  const int64_t winner = decided(scores);
  if (winner < 0) return false;
  *id = o.first_id + columns[kept[winner]];
  return true;
}

Options random_options(Run& run, int64_t most) {
  Options o{};
  o.logits = run.size(most);
  o.first_id = run.integer(0, 20);
  o.begin = run.coin() ? 0 : run.integer(0, o.logits - 1);
  o.end = run.coin() ? o.logits : run.integer(o.begin + 1, o.logits);
  o.eos = run.coin() ? -1 : run.integer(0, o.logits - 1);
  o.min_eos_p = run.coin() ? 0.0f : float(run.uniform() * 0.3);
  o.temperature = run.coin() ? 1.0f : 0.3f + float(run.uniform());
  o.top_k = run.coin() ? 0 : run.size(o.logits + 3);
  o.top_p = run.coin() ? 1 : run.integer(0, 9) == 0 ? 0 : run.uniform();
  o.renormalize = run.coin();
  o.greedy = run.integer(0, 4) == 0;
  return o;
}

// Rules of rows as the kernels read them.
struct Rules {
  std::vector<int64_t> allowed, top_k;
  std::vector<double> min_eos_p, temperature, top_p;

  explicit Rules(const std::vector<Options>& rows) {
    for (const Options& o : rows) {
      const int64_t eos = o.eos < 0 ? -1 : o.first_id + o.eos;
      for (const int64_t id : {o.first_id + o.begin, o.first_id + o.end, eos}) allowed.push_back(id);
      top_k.push_back(o.top_k);
      min_eos_p.push_back(o.min_eos_p);
      temperature.push_back(o.temperature);
      top_p.push_back(o.top_p);
    }
  }

  SampleRules at(int64_t columns) const {
    const int64_t one = top_k.size() > 1;
    const int64_t* ids = allowed.data();
    return {{ids, 3 * one, 0},
            {ids + 1, 3 * one, 0},
            {ids + 2, 3 * one, 0},
            {min_eos_p.data(), one, 0},
            {temperature.data(), one, 1},
            {top_k.data(), one, 0},
            {top_p.data(), one, 1},
            columns};
  }
};

// `rules`: of each row, or one for all of them.
template <class Logit>
void check(Run& run, const std::vector<Options>& rules, DType dtype, Buffer<Logit> logits,
           Buffer<float> noise, int64_t rows) {
  const int64_t vocabulary = noise.size() / rows;
  const Options& shared = rules[0];
  std::vector<int64_t> ids(rows, -99);
  FusedSampleParams p{};
  p.sample.logits = logits.data();
  p.sample.row_stride = shared.logits;
  p.sample.dtype = dtype;
  p.sample.noise = shared.greedy ? nullptr : noise.data();
  p.sample.noise_stride = vocabulary;
  p.sample.first_id = shared.first_id;
  p.sample.renormalize = shared.renormalize;
  const Rules held(rules);
  p.rules = held.at(shared.logits);
  p.rows = rows;
  p.ids = ids.data();
  launch_fused_sample(run.executor, p);
  for (int64_t n = 0; n < rows; ++n) {
    const Options& o = rules[rules.size() > 1 ? n : 0];
    std::vector<double> row, drawn;
    for (int64_t c = 0; c < o.logits; ++c) row.push_back(logits[n * o.logits + c]);
    for (int64_t v = 0; v < vocabulary; ++v) drawn.push_back(noise[n * vocabulary + v]);
    int64_t expected = 0;
    if (!reference(o, row, drawn, &expected)) continue;
    run.expect(ids[n] == expected, "expected " + std::to_string(expected) + ", got " +
                                       std::to_string(ids[n]) + " of " + std::to_string(o.logits) +
                                       " logits, top-k " + std::to_string(o.top_k) + ", top-p " +
                                       std::to_string(o.top_p));
  }
}

// `o` for all rows, or for the first one and others for the rest.
std::vector<Options> rules_of_rows(Run& run, const Options& o, int64_t rows) {
  std::vector<Options> rules{o};
  for (int64_t n = 1; n < rows && (n > 1 ? rules.size() > 1 : run.coin()); ++n) {
    Options other = random_options(run, o.logits);
    other.logits = o.logits;
    other.first_id = o.first_id;
    other.renormalize = o.renormalize;
    other.greedy = o.greedy;
    rules.push_back(other);
  }
  return rules;
}

// `step`: logits are multiples of it, so that many are equal; 0: they are not.
template <class Logit>
void check_random(Run& run, const Options& o, DType dtype, float step) {
  const int64_t rows = run.integer(1, 3), vocabulary = o.first_id + o.logits + run.integer(0, 9);
  Buffer<Logit> logits(rows * o.logits);
  for (int64_t i = 0; i < logits.size(); ++i) {
    const float x = run.normal() * 2;
    const bool masked = run.integer(0, 30) == 0;
    logits.data()[i] = from_float<Logit>(masked ? -INFINITY : step > 0 ? std::round(x / step) * step : x);
  }
  Buffer<float> noise(rows * vocabulary);
  for (int64_t i = 0; i < noise.size(); ++i) noise.data()[i] = float(-std::log(1 - run.uniform()) + 1e-9);
  check(run, rules_of_rows(run, o, rows), dtype, std::move(logits), std::move(noise), rows);
}

void check_types(Run& run, const Options& o, float step) {
  switch (run.integer(0, 2)) {
    case 0:
      return check_random<float>(run, o, DType::kFloat32, step);
    case 1:
      return check_random<Half>(run, o, DType::kFloat16, step);
    default:
      return check_random<BFloat16>(run, o, DType::kBFloat16, step);
  }
}

void small(Run& run) { check_types(run, random_options(run, 100), 0); }

void ties(Run& run) { check_types(run, random_options(run, 200), run.coin() ? 1.0f : 4.0f); }

void random_rows(Run& run) { check_types(run, random_options(run, 1024), run.integer(0, 2) ? 0 : 0.5f); }

// bark's semantic vocabulary and options.
void semantic(Run& run) {
  check_random<float>(run, {10048, 0, 0, 10000, 10000, 0.0f, 0.7f, 50, 0.95, true, false}, DType::kFloat32,
                      0);
}

void refused(Run& run) {
  Options o = random_options(run, 60);
  const int64_t vocabulary = o.first_id + o.logits;
  Buffer<float> logits = Buffer<float>::normal(run, o.logits);
  Buffer<float> noise(vocabulary);
  for (int64_t i = 0; i < vocabulary; ++i) noise.data()[i] = 1.0f + float(run.uniform());
  const int64_t at = run.integer(o.begin, o.end - 1), kind = run.integer(0, 4);
  if (kind == 0) logits.data()[at] = NAN;
  if (kind == 1) logits.data()[at] = INFINITY;
  if (kind == 2) std::fill_n(logits.data(), o.logits, -INFINITY);
  if (kind == 3) std::fill_n(noise.data(), vocabulary, NAN);
  if (kind == 4) std::fill_n(noise.data(), vocabulary, -1.0f);
  check(run, {o}, DType::kFloat32, std::move(logits), std::move(noise), 1);
}

constexpr Case kCases[] = {
    {"small", 80, true, small},       {"ties", 80, true, ties},       {"random rows", 24, false, random_rows},
    {"semantic", 2, false, semantic}, {"refused", 40, true, refused},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
