// MT19937 as torch seeds it, and the draw of a token.
#pragma once

#include "common.h"

namespace cpu_cases {

inline uint32_t tempered(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// A generator's state as it is seeded, and `count` words after it.
inline std::vector<uint32_t> seeded_words(const KernelTable& table, uint32_t seed, int64_t count) {
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

inline void generators(Run& run) {
  const KernelTable& table = any_table(run);
  const auto seed = uint32_t(run.random());
  std::mt19937 expected(seed);
  const std::vector<uint32_t> words = seeded_words(table, seed, kMt19937Block * run.integer(1, 3));
  for (const uint32_t word : words) run.expect(tempered(word) == expected(), "MT19937");
}

inline double noise_of(const uint32_t* words) {
  const uint64_t bits = uint64_t(tempered(words[0])) << 32 | tempered(words[1]);
  return -std::log1p(-double(bits & ((uint64_t(1) << 53) - 1)) * 0x1p-53);
}

// What top-k and top-p leave of the scores; of several scores at the edge of top-p all, or none.
inline std::vector<bool> survivors(const std::vector<double>& scores, int64_t top_k, double top_p,
                                   bool edge) {
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

inline void samples(Run& run) {
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

}  // namespace cpu_cases
