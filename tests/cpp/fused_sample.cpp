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

struct OneThread {
  template <class T>
  T atomic_add(T* address, T value) const {
    const T before = *address;
    *address += value;
    return before;
  }
};

// Two 32-bit words count as one of 64 bits would.
void bins(Run& run) {
  FusedSample<float>::Shared shared{};
  unsigned long long sum = 0;
  for (int i = 0; i < 100; ++i) {
    const auto weight = (unsigned long long)(run.uniform() * 0x1p55);
    FusedSample<float>::add(OneThread{}, shared, 3, weight);
    FusedSample<float>::add(OneThread{}, shared, 3, 1u);
    run.expect(shared.bin(3) == (sum += weight + 1), "a bin of 64 bits");
  }
}

// Known answers of Random123, which curand's Philox equals.
void philox_words(Run& run) {
  const struct {
    PhiloxWords counter;
    uint64_t key;
    PhiloxWords expected;
  } known[] = {
      {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{~0u, ~0u, ~0u, ~0u}}, ~0ull, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0x299f31d0a4093822,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& k : known) {
    const PhiloxWords got = philox(k.counter, k.key);
    for (int i = 0; i < 4; ++i) run.expect(got.word[i] == k.expected.word[i], "Philox4x32-10");
  }
}

// One draw as torch's kernel makes it: threads with a generator each, which stride over the entries.
std::vector<float> torch_noise(uint64_t seed, uint64_t offset, int64_t entries, int64_t lanes,
                               uint64_t* calls) {
  std::vector<float> noise(entries);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    uint64_t call = offset / 4;
    for (int64_t i = lane; i < (entries + lanes * 4 - 1) / (lanes * 4) * lanes * 4; i += lanes * 4, ++call) {
      const PhiloxWords words = philox({{uint32_t(call), uint32_t(call >> 32), uint32_t(lane), 0}}, seed);
      for (int64_t word = 0; word < 4; ++word) {
        if (i + lanes * word < entries) noise[i + lanes * word] = exponential_of(words.word[word]);
      }
    }
    *calls = call - offset / 4;
  }
  return noise;
}

// Several tokens after one another, each where the one before has left off.
void next_steps(Run& run) {
  const int64_t rows = run.integer(1, 3), columns = run.size(150), room = run.integer(1, 4);
  const int64_t first_id = run.integer(0, 9), vocabulary = first_id + columns + run.integer(0, 9);
  const bool greedy = run.integer(0, 3) == 0;
  Options o{columns, first_id, 0, columns, -1, 0, 0.8f, run.size(columns), 1, true, greedy};
  const Rules held({o});
  const int64_t before[2] = {int64_t(uint64_t(run.random()) << 32 | run.random()),
                             int64_t(run.integer(0, 9)) * 4 + (run.coin() ? int64_t(1) << 34 : 0)};
  std::vector<int64_t> ids(rows, -99), next_ids(rows, -99), drawn(rows * room, -99), count(rows, 0);
  std::vector<int64_t> length(rows, 7), seen;
  FusedSampleParams p{};
  p.sample.row_stride = columns;
  p.sample.dtype = DType::kFloat32;
  p.sample.first_id = first_id;
  p.sample.renormalize = true;
  p.rules = held.at(columns);
  p.rows = rows;
  p.ids = ids.data();
  p.next = {next_ids.data(), drawn.data(), count.data(), length.data(), room};
  const int64_t entries = rows * vocabulary, lanes = 32 * run.integer(1, 8);
  if (!greedy) p.philox = {before, count.data(), vocabulary, uint32_t(entries), uint32_t(lanes)};
  uint64_t offset = uint64_t(before[1]), calls = 0;
  for (int64_t token = 0; token < 4; ++token) {
    Buffer<float> logits = Buffer<float>::normal(run, rows * columns);
    p.sample.logits = logits.data();
    launch_fused_sample(run.executor, p);
    const std::vector<float> noise = torch_noise(uint64_t(before[0]), offset, entries, lanes, &calls);
    offset += 4 * calls;
    for (int64_t n = 0; n < rows; ++n) {
      std::vector<double> row, given;
      for (int64_t c = 0; c < columns; ++c) row.push_back(logits[n * columns + c]);
      for (int64_t v = 0; v < vocabulary; ++v) given.push_back(noise[n * vocabulary + v]);
      int64_t expected = 0;
      if (reference(o, row, given, &expected)) run.expect(ids[n] == expected, "a token of torch's noise");
      run.expect(next_ids[n] == ids[n], "the id that the next step reads");
      run.expect(count[n] == token + 1 && length[n] == 8 + token, "count and length");
      seen.push_back(ids[n]);
    }
  }
  for (int64_t i = 0; i < room * rows; ++i) run.expect(drawn[i] == seen[i], "the tokens so far");
}

constexpr Case kCases[] = {
    {"bins", 1, false, bins},
    {"philox words", 1, false, philox_words},
    {"next steps", 40, true, next_steps},
    {"small", 80, true, small},
    {"ties", 80, true, ties},
    {"random rows", 24, false, random_rows},
    {"semantic", 2, false, semantic},
    {"refused", 40, true, refused},
};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
