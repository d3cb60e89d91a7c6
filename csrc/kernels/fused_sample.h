// One row of logits -> one token id: Bark's token rules, EOS priority, temperature, top-k, top-p, softmax and
// the exponential race argmax(p / noise) that equals torch.multinomial(p, 1). Float operations follow the
// order of Transformers' processors and of ATen's CPU softmax, so a different token needs a tie within
// rounding error. No full sort: top-k goes through 256 partial maxima, top-p through a weighted quickselect.
// Noise given as a generator's words is never computed in full: a cheap lower bound of it bounds the scores
// from above, and only the few that can win are computed exactly.
#pragma once

#include "mt19937.h"
#include "vec_math.h"

namespace bark_accel::BARK_ACCEL_ISA {

constexpr float kBoundSlack = 1 - 1e-5f;  // far above the roundings of a score and of its bound

constexpr int kGroups = 256;  // partial maxima, also the padding of a row (with -inf)

// The allowed logits in ascending id order.
struct Row {
  float* values;  // padded with -inf up to a multiple of kGroups
  float* noise;   // aligned with values
  float* work;    // two floats per value
  int32_t* kept;  // positions that survived, when compact
  int64_t count;
  int64_t eos;  // position of the eos, or -1
  int64_t begin, range_start;
  bool eos_outside;
};

inline int64_t padded_count(int64_t allowed) { return round_up(allowed + 1, kGroups); }
inline int64_t sample_scratch(int64_t allowed) { return 5 * padded_count(allowed); }

inline int64_t column_of(const Row& row, const SampleParams& p, int64_t position) {
  if (row.eos_outside && position == row.eos) return p.eos;
  return row.begin + position - row.range_start;
}

template <typename T>
Row gather_allowed(const SampleParams& p, int64_t n, float* scratch) {
  const T* logits = static_cast<const T*>(p.logits) + n * p.row_stride;
  const int64_t range = p.end - p.begin;
  const int64_t padded = padded_count(range);
  Row row{};
  row.values = scratch;
  row.noise = scratch + padded;
  row.kept = reinterpret_cast<int32_t*>(scratch + 2 * padded);
  row.work = scratch + 3 * padded;
  row.begin = p.begin;
  row.eos_outside = p.eos >= 0 && (p.eos < p.begin || p.eos >= p.end);
  row.range_start = row.eos_outside && p.eos < p.begin;
  row.count = range + row.eos_outside;
  row.eos = p.eos < 0 ? -1 : row.range_start ? 0 : row.eos_outside ? range : p.eos - p.begin;
  convert(row.values + row.range_start, logits + p.begin, range);
  if (row.eos_outside) row.values[row.eos] = load_first(logits + p.eos, 1)[0];
  for (int64_t i = row.count; i < padded; ++i) row.values[i] = -kInfinity;
  return row;
}

// Maximum, or NaN if any value is NaN or +inf.
inline float checked_max(const Row& row) {
  VecF top = splat(-kInfinity);
  VecI finite = ~VecI{};
  for (int64_t i = 0; i < row.count; i += kWidth) {
    const VecF v = load(row.values + i);
    finite &= v < kInfinity;
    top = vmax(top, v);
  }
  return lane_mask(finite) == (1ull << kWidth) - 1 ? max_lanes(top) : __builtin_nanf("");
}

inline int64_t first_equal(const float* values, int64_t count, float wanted) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const uint32_t mask = lane_mask(load(values + i) == splat(wanted));
    if (mask) return i + __builtin_ctz(mask);
  }
  return 0;
}

inline bool eos_has_priority(const Row& row, float top, float min_eos_p) {
  const float numerator = vexp(splat(row.values[row.eos] - top))[0];
  if (numerator < min_eos_p) return false;  // the denominator is at least 1
  VecF sum{};
  for (int64_t i = 0; i < row.count; i += kWidth) sum += vexp(load(row.values + i) - top);
  return numerator * (1.0f / sum_lanes(sum)) > min_eos_p;
}

// The k-th largest (k >= 1) of a[0, count); reorders a.
inline float kth_largest(float* a, int64_t count, int64_t k) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const float x = a[low], y = a[(low + high) / 2], z = a[high];
    const float pivot = x < y ? (y < z ? y : (x < z ? z : x)) : (x < z ? x : (y < z ? z : y));
    int64_t i = low, j = high;
    while (i <= j) {
      while (a[i] > pivot) ++i;
      while (a[j] < pivot) --j;
      if (i > j) break;
      const float swapped = a[i];
      a[i++] = a[j];
      a[j--] = swapped;
    }
    if (k - 1 <= j) {
      high = j;
    } else if (k - 1 >= i) {
      low = i;
    } else {
      break;
    }
  }
  return a[k - 1];
}

// A lower bound of the k-th largest value: the k-th largest of 256 maxima over disjoint subsets.
inline float top_k_lower_bound(const Row& row, int64_t k) {
  VecF top[kGroups / kWidth];
  for (VecF& t : top) t = splat(-kInfinity);
  for (int64_t i = 0; i < row.count; i += kGroups) {
    for (int j = 0; j < kGroups / kWidth; ++j) top[j] = vmax(top[j], load(row.values + i + j * kWidth));
  }
  for (int j = 0; j < kGroups / kWidth; ++j) store(row.work + j * kWidth, top[j]);
  return kth_largest(row.work, kGroups, k);
}

// Positions with value >= bound, ascending; values are compacted into row.work.
inline int64_t collect_at_least(const Row& row, float bound) {
  int64_t found = 0;
  for (int64_t i = 0; i < row.count; i += kWidth) {
    uint32_t mask = lane_mask(load(row.values + i) >= splat(bound));
    for (; mask; mask &= mask - 1) {
      const int64_t position = i + __builtin_ctz(mask);
      if (position >= row.count) break;
      row.work[found] = row.values[position];
      row.kept[found++] = int32_t(position);
    }
  }
  return found;
}

// Returns how many survive; afterwards row.kept lists them and row.values is compact. Ties at the k-th stay.
inline int64_t keep_top_k(const Row& row, int64_t k) {
  const float bound = k <= kGroups / 2 ? top_k_lower_bound(row, k) : -kInfinity;
  const int64_t candidates = collect_at_least(row, bound);
  const float kth = kth_largest(row.work, candidates, k);
  int64_t kept = 0;
  for (int64_t i = 0; i < candidates; ++i) {
    const float value = row.values[row.kept[i]];
    row.kept[kept] = row.kept[i];
    row.values[kept] = value;  // kept <= kept[i]: never overwrites a value still to be read
    kept += value >= kth;
  }
  return kept;
}

inline void pad(float* values, int64_t count, float with) {
  for (int64_t i = count; i < round_up(count, kWidth); ++i) values[i] = with;
}

// e^(values - top) into out; returns the sum. `values` must be padded with -inf.
inline float exponentials(const float* values, int64_t count, float top, float* out) {
  VecF sum{};
  for (int64_t i = 0; i < count; i += kWidth) {
    const VecF e = vexp(load(values + i) - top);
    store(out + i, e);
    sum += e;
  }
  return sum_lanes(sum);
}

struct Weighted {
  float value, mass;
};

// Where top-p cuts the ascending stable order: all below `value` and the first `ties` equal to it go.
struct Cut {
  float value;
  int64_t ties;
};

// Finds the first element whose cumulative mass, rounded to float as torch.cumsum does, exceeds `limit`.
inline Cut find_cut(Weighted* a, int64_t count, float limit, Cut none_exceeds) {
  Cut cut = none_exceeds;
  double below = 0;
  int64_t low = 0, high = count;
  while (low < high) {
    const float x = a[low].value, y = a[(low + high) / 2].value, z = a[high - 1].value;
    const float pivot = x < y ? (y < z ? y : (x < z ? z : x)) : (x < z ? x : (y < z ? z : y));
    int64_t less = low, i = low, greater = high;
    double mass_less = 0;
    float mass_equal = 0;
    while (i < greater) {
      const Weighted w = a[i];
      if (w.value < pivot) {
        mass_less += w.mass;
        a[i++] = a[less];
        a[less++] = w;
      } else if (w.value > pivot) {
        a[i] = a[--greater];
        a[greater] = w;
      } else {
        mass_equal = w.mass;
        ++i;
      }
    }
    if (float(below + mass_less) > limit) {
      cut = {pivot, 0};
      high = less;
      continue;
    }
    below += mass_less;
    for (int64_t tie = 0; tie < greater - less; ++tie) {
      below += mass_equal;
      if (float(below) > limit) return {pivot, tie};
    }
    low = greater;
  }
  return cut;
}

// `kept` positions are in row.kept and row.values is compact; returns how many survive.
inline int64_t keep_top_p(const Row& row, int64_t kept, float top, float limit) {
  pad(row.values, kept, -kInfinity);
  float* masses = row.noise;  // free until the draw
  const float scale = 1.0f / exponentials(row.values, kept, top, masses);
  Weighted* weighted = reinterpret_cast<Weighted*>(row.work);
  int64_t top_ties = 0;
  for (int64_t i = 0; i < kept; ++i) {
    weighted[i] = {row.values[i], masses[i] * scale};
    top_ties += row.values[i] == top;
  }
  const Cut cut = find_cut(weighted, kept, limit, {top, top_ties - 1});
  int64_t out = 0, ties = 0;
  for (int64_t i = 0; i < kept; ++i) {
    const float value = row.values[i];
    row.kept[out] = row.kept[i];
    row.values[out] = value;
    out += value > cut.value || (value == cut.value && ties++ >= cut.ties);
  }
  return out;
}

// argmax(softmax(values) / noise), after log_softmax when stock renormalises; first position at ties.
// Leaves the probabilities in `values` and the quotients in `work`.
inline int64_t race(float* values, const float* noise, float* work, int64_t count, float top,
                    bool renormalize) {
  pad(values, count, -kInfinity);
  float sum = exponentials(values, count, top, work);
  if (renormalize) {
    const float log_sum = __builtin_logf(sum);
    for (int64_t i = 0; i < count; i += kWidth) store(values + i, load(values + i) - top - log_sum);
    sum = exponentials(values, count, 0.0f - log_sum, work);
  }
  const float scale = 1.0f / sum;
  VecF best = splat(-1.0f);
  for (int64_t i = 0; i < count; i += kWidth) {
    const VecF probability = load(work + i) * scale;
    const VecF score = probability / load(noise + i);
    store(values + i, probability);
    store(work + i, score);
    best = vmax(best, score);
  }
  return first_equal(work, count, max_lanes(best));
}

inline const uint32_t* words_of(const SampleParams& p, int64_t n, int64_t column) {
  return p.words + 2 * (n * p.noise_stride + p.first_id + column);
}

// Lower bounds of the noise instead of the noise.
inline void gather_noise_bounds(const Row& row, const SampleParams& p, int64_t n, int64_t kept,
                                bool compact) {
  if (compact) {
    uint32_t* words = reinterpret_cast<uint32_t*>(row.work);
    for (int64_t i = 0; i < kept; ++i) {
      __builtin_memcpy(words + 2 * i, words_of(p, n, column_of(row, p, row.kept[i])), 8);
    }
    exponential_lower_bounds(row.noise, words, kept);
  } else {
    exponential_lower_bounds(row.noise + row.range_start, words_of(p, n, p.begin), p.end - p.begin);
    if (row.eos_outside) exponential_lower_bounds(row.noise + row.eos, words_of(p, n, p.eos), 1);
  }
  pad(row.noise, kept, 1.0f);
}

// The winner of the race against the exact noise, after the race against its lower bounds, which `likely`
// won.
inline int64_t exact_winner(const Row& row, const SampleParams& p, int64_t n, int64_t kept, bool compact,
                            int64_t likely) {
  const auto score = [&](int64_t i) {
    const int64_t column = column_of(row, p, compact ? row.kept[i] : i);
    return row.values[i] / exponential(words_of(p, n, column));
  };
  int64_t winner = likely;
  float best = score(likely);
  for (int64_t i = 0; i < kept; i += kWidth) {
    uint32_t mask = lane_mask(load(row.work + i) >= splat(best * kBoundSlack));
    for (; mask; mask &= mask - 1) {
      const int64_t position = i + __builtin_ctz(mask);
      if (position >= kept) break;
      const float challenger = score(position);
      if (challenger > best || (challenger == best && position < winner)) {
        best = challenger;
        winner = position;
      }
    }
  }
  return winner;
}

inline void gather_noise(const Row& row, const SampleParams& p, int64_t n, int64_t kept, bool compact) {
  const float* noise = p.noise + n * p.noise_stride + p.first_id;
  if (compact) {
    for (int64_t i = 0; i < kept; ++i) row.noise[i] = noise[column_of(row, p, row.kept[i])];
  } else {
    convert(row.noise + row.range_start, noise + p.begin, p.end - p.begin);
    if (row.eos_outside) row.noise[row.eos] = noise[p.eos];
  }
  pad(row.noise, kept, 1.0f);
}

inline SampleStatus sample_row(const SampleParams& p, int64_t n, float* scratch, int64_t* id) {
  const Row row = p.dtype == DType::kFloat16    ? gather_allowed<Half>(p, n, scratch)
                  : p.dtype == DType::kBFloat16 ? gather_allowed<BFloat16>(p, n, scratch)
                                                : gather_allowed<float>(p, n, scratch);
  float top = checked_max(row);
  if (top != top) return SampleStatus::kNotFinite;
  if (top == -kInfinity) return SampleStatus::kAllMasked;
  if (row.eos >= 0 && p.min_eos_p > 0 && eos_has_priority(row, top, p.min_eos_p)) {
    *id = p.first_id + p.eos;
    return SampleStatus::kOk;
  }
  if (!p.noise && !p.words) {
    *id = p.first_id + column_of(row, p, first_equal(row.values, row.count, top));
    return SampleStatus::kOk;
  }
  if (p.temperature != 1.0f) {
    for (int64_t i = 0; i < row.count; i += kWidth) {
      store(row.values + i, load(row.values + i) / p.temperature);
    }
    top /= p.temperature;
    if (top == kInfinity) return SampleStatus::kNotFinite;
    if (top == -kInfinity) return SampleStatus::kAllMasked;
  }
  int64_t kept = row.count;
  const bool compact = p.use_top_p || (p.top_k > 0 && p.top_k < row.count);
  if (p.top_k > 0 && p.top_k < row.count) {
    kept = keep_top_k(row, p.top_k);
  } else if (compact) {
    for (int64_t i = 0; i < kept; ++i) row.kept[i] = int32_t(i);
  }
  if (p.use_top_p) kept = keep_top_p(row, kept, top, p.top_p_cut);
  p.words ? gather_noise_bounds(row, p, n, kept, compact) : gather_noise(row, p, n, kept, compact);
  int64_t winner = race(row.values, row.noise, row.work, kept, top, p.renormalize);
  if (p.words) {
    winner = exact_winner(row, p, n, kept, compact, winner);
  } else if (winner < 0 || winner >= kept || !(row.noise[winner] > 0)) {
    // Where no noise is positive, padding wins or nothing does.
    return SampleStatus::kBadNoise;
  }
  *id = p.first_id + column_of(row, p, compact ? row.kept[winner] : winner);
  return SampleStatus::kOk;
}

}  // namespace bark_accel::BARK_ACCEL_ISA
