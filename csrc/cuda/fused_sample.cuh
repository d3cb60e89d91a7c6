// One row of logits -> one token id, one block a row: the rules of kernels/fused_sample.h in the same order.
// No sort: top-k and top-p select a threshold digit by digit (radix select) from histograms in shared memory.
// Masses are summed as fixed-point integers, so that the order of atomic additions cannot change a token;
// bins are pairs of 32-bit words, because atomics on 64 bits of shared memory are loops of compare-and-swap.
#pragma once

#include "philox.cuh"  // before what follows, for its BARK_BOTH

#include "../kernels/sample_rules.h"

namespace bark_accel::cuda {

// What a drawn token moves on, so that the next step needs no other kernel.
struct NextStep {
  int64_t* ids;     // [rows] what the step reads
  int64_t* drawn;   // [room, rows] the tokens so far
  int64_t* count;   // [rows] how many; null: nothing is moved on
  int64_t* length;  // [rows] entries of the cache
  int64_t room;     // tokens beyond it are not kept
};

struct FusedSampleParams {
  SampleParams sample;  // noise or greedy, without the rules; `words` is for the CPU only
  SampleRules rules;    // on the device
  PhiloxNoise philox;   // instead of `sample.noise`
  int64_t rows;
  int64_t* ids;  // [rows]; minus the SampleStatus of a row that cannot be sampled
  NextStep next;
};

template <class Logit, int kBlock = 512>
struct FusedSample {
  using Params = FusedSampleParams;
  static constexpr int kThreads = kBlock;
  static constexpr int kBins = 256;
  static constexpr int64_t kOne = int64_t(1) << 62;  // a probability of 1 in fixed point
  static constexpr int64_t kKept = 11 * 1024;        // scores that shared memory has room for

  struct Shared {
    uint32_t low[kBins], high[kBins];
    unsigned long long reduced[kThreads / kWarp];
    unsigned long long below;
    uint32_t digit;

    BARK_DEVICE unsigned long long bin(int i) const { return (unsigned long long)(high[i]) << 32 | low[i]; }
  };
  static_assert(sizeof(Shared) % 8 == 0 && sizeof(Shared) + sizeof(float) * kKept <= 48 * 1024);

  // The allowed logits in ascending id order.
  struct Row {
    const Logit* logits;
    const float* noise;         // of the ids from the first column on, or null
    const PhiloxNoise* philox;  // or null; without both: greedy
    float* scores;              // in shared memory; null: too many
    int64_t index;
    int count, begin, range_start;
    bool eos_outside;
    int eos, eos_column;  // position and column, or -1
  };

  static Grid grid(const Params& p) {
    const int64_t kept = p.rules.columns <= kKept ? p.rules.columns : 0;
    return {p.rows, kThreads, int64_t(sizeof(Shared) + sizeof(float) * kept)};
  }

  BARK_DEVICE static Row row_of(const Params& all, const SampleParams& p, int64_t n, float* scores) {
    Row row;
    row.logits = static_cast<const Logit*>(p.logits) + n * p.row_stride;
    row.noise = p.noise ? p.noise + n * p.noise_stride + p.first_id : nullptr;
    row.philox = all.philox.state ? &all.philox : nullptr;
    row.scores = all.rules.columns <= kKept ? scores : nullptr;
    row.index = n;
    row.eos_outside = p.eos >= 0 && (p.eos < p.begin || p.eos >= p.end);
    row.begin = int(p.begin);
    row.range_start = row.eos_outside && p.eos < p.begin;
    row.count = int(p.end - p.begin) + row.eos_outside;
    row.eos_column = int(p.eos);
    row.eos = p.eos < 0 ? -1 : !row.eos_outside ? int(p.eos - p.begin) : row.range_start ? 0 : row.count - 1;
    return row;
  }

  BARK_DEVICE static int column(const Row& row, int i) {
    return row.eos_outside && i == row.eos ? row.eos_column : row.begin + i - row.range_start;
  }

  // + 0 makes -0 equal to 0 in its bits as well.
  BARK_DEVICE static float logit(const Row& row, int i) {
    return to_float(row.logits[column(row, i)]) + 0.0f;
  }

  BARK_DEVICE static float divided(const SampleParams& p, const Row& row, int i) {
    return logit(row, i) / p.temperature + 0.0f;
  }

  // A thread asks for its own positions only: what it divided itself.
  BARK_DEVICE static float score(const SampleParams& p, const Row& row, int i) {
    return row.scores ? row.scores[i] : divided(p, row, i);
  }

  BARK_DEVICE static float noise_of(const SampleParams& p, const Row& row, int i) {
    const int at = column(row, i);
    return row.noise ? row.noise[at] : exponential_at(*row.philox, row.index, p.first_id + at);
  }

  // Ordered as the floats are.
  BARK_DEVICE static uint32_t key_of(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }

  BARK_DEVICE static float value_of(uint32_t key) {
    return bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
  }

  // Of the positions with the largest value, the first; ranked(value, i) for block_reduce with Max.
  BARK_DEVICE static unsigned long long ranked(float value, int i) {
    return (unsigned long long)(key_of(value)) << 32 | (0xffffffffu - uint32_t(i));
  }

  template <class Context, class T, class Op>
  BARK_DEVICE static T reduce(const Context& ctx, Shared& shared, T value, Op op) {
    return block_reduce(ctx, value, reinterpret_cast<T*>(shared.reduced), op);
  }

  // For warp 0: the first bin with which the cumulative weight, `below` before the first, exceeds.
  template <class Context, class Exceeds>
  BARK_DEVICE static void find_digit(const Context& ctx, Shared& shared, unsigned long long below,
                                     Exceeds exceeds) {
    constexpr int kShare = kBins / kWarp;
    const int lane = lane_of(ctx);
    unsigned long long mine = 0;
    for (int i = 0; i < kShare; ++i) mine += shared.bin(lane * kShare + i);
    unsigned long long up_to = mine;  // inclusive scan
    for (int step = 1; step < kWarp; step *= 2) {
      const unsigned long long before = ctx.shuffle(up_to, lane < step ? lane : lane - step);
      if (lane >= step) up_to += before;
    }
    below += up_to - mine;
    if (exceeds(below) || !exceeds(below + mine)) return;
    int digit = lane * kShare;
    while (!exceeds(below + shared.bin(digit))) below += shared.bin(digit++);
    shared.digit = uint32_t(digit);
    shared.below = below;
  }

  template <class Context>
  BARK_DEVICE static void add(const Context& ctx, Shared& shared, uint32_t bin, uint32_t weight) {
    ctx.atomic_add(&shared.low[bin], weight);
  }

  // Whoever makes the low word overflow carries.
  template <class Context>
  BARK_DEVICE static void add(const Context& ctx, Shared& shared, uint32_t bin, unsigned long long weight) {
    const uint32_t low = uint32_t(weight), before = ctx.atomic_add(&shared.low[bin], low);
    const uint32_t high = uint32_t(weight >> 32) + (before + low < low);
    if (high > 0) ctx.atomic_add(&shared.high[bin], high);
  }

  // The smallest key with which the cumulative weight in ascending order of keys exceeds, where `exceeds` is
  // false of 0 and true of the total; *below becomes the weight of all smaller keys.
  template <class Context, class Key, class Weight, class Exceeds>
  BARK_DEVICE static uint32_t select(const Context& ctx, Shared& shared, int count, Key key, Weight weight,
                                     Exceeds exceeds, unsigned long long* below) {
    uint32_t prefix = 0;
    *below = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = ctx.thread(); i < kBins; i += kThreads) shared.low[i] = shared.high[i] = 0;
      ctx.barrier();
      for (int i = ctx.thread(); i < count; i += kThreads) {
        const uint32_t k = key(i);
        if (uint64_t(k ^ prefix) >> (shift + 8)) continue;
        const auto w = weight(i);
        if (w > 0) add(ctx, shared, k >> shift & (kBins - 1), w);
      }
      ctx.barrier();
      if (warp_of(ctx) == 0) find_digit(ctx, shared, *below, exceeds);
      ctx.barrier();
      prefix |= shared.digit << shift;
      *below = shared.below;
    }
    return prefix;
  }

  // What has survived so far: values above `value`, and those equal to it from position `first` on.
  struct Cut {
    float value;
    int first;
    BARK_DEVICE bool keeps(float x, int i) const { return x > value || (x == value && i >= first); }
  };

  // Ties at the k-th largest stay.
  template <class Context>
  BARK_DEVICE static Cut top_k(const Context& ctx, Shared& shared, const SampleParams& p, const Row& row) {
    unsigned long long below;
    const unsigned long long dropped = row.count - p.top_k;
    const uint32_t key = select(
        ctx, shared, row.count, [&](int i) { return key_of(score(p, row, i)); }, [](int) { return 1u; },
        [=](unsigned long long cumulative) { return cumulative > dropped; }, &below);
    return {value_of(key), 0};
  }

  // Drops from the smallest on, equal values by index, while the cumulative mass is at most `top_p_cut`.
  template <class Context>
  BARK_DEVICE static Cut top_p(const Context& ctx, Shared& shared, const SampleParams& p, const Row& row,
                               Cut cut, float top) {
    const float scale = 1.0f / mass_of(ctx, shared, p, row, cut, top);
    const auto mass = [&](float x) { return (unsigned long long)(expf(x - top) * scale * float(kOne)); };
    const auto weight = [&](int i) {
      const float x = score(p, row, i);
      return cut.keeps(x, i) ? mass(x) : 0ull;
    };
    const auto exceeds = [&](unsigned long long total) {
      return float(total) * (1.0f / float(kOne)) > p.top_p_cut;
    };
    unsigned long long total = 0, below = 0;
    for (int i = ctx.thread(); i < row.count; i += kThreads) total += weight(i);
    total = reduce(ctx, shared, total, Sum{});
    const bool any = exceeds(total);
    float value = top;
    if (any) {
      value = value_of(select(
          ctx, shared, row.count, [&](int i) { return key_of(score(p, row, i)); }, weight, exceeds, &below));
    }
    unsigned long long equal = 0;
    for (int i = ctx.thread(); i < row.count; i += kThreads) equal += score(p, row, i) == value;
    equal = reduce(ctx, shared, equal, Sum{});
    // Where rounding keeps even the whole mass from exceeding, the last of the largest stays.
    unsigned long long ties = any ? 0 : equal - 1;
    while (any && ties + 1 < equal && !exceeds(below + (ties + 1) * mass(value))) ++ties;
    if (ties == 0) return {value, 0};
    unsigned long long unused;
    const uint32_t first = select(
        ctx, shared, row.count, [](int i) { return uint32_t(i); },
        [&](int i) { return score(p, row, i) == value ? 1u : 0u; },
        [=](unsigned long long cumulative) { return cumulative > ties; }, &unused);
    return {value, int(first)};
  }

  // Sum of e^(score - top) of what the cut keeps.
  template <class Context>
  BARK_DEVICE static float mass_of(const Context& ctx, Shared& shared, const SampleParams& p, const Row& row,
                                   const Cut& cut, float top) {
    float sum = 0;
    for (int i = ctx.thread(); i < row.count; i += kThreads) {
      const float x = score(p, row, i);
      if (cut.keeps(x, i)) sum += expf(x - top);
    }
    return reduce(ctx, shared, sum, Sum{});
  }

  // argmax(softmax(scores) / noise), after log_softmax when stock renormalises; the first position at ties.
  template <class Context>
  BARK_DEVICE static int race(const Context& ctx, Shared& shared, const SampleParams& p, const Row& row,
                              const Cut& cut, float top) {
    float sum = mass_of(ctx, shared, p, row, cut, top), log_sum = 0;
    if (p.renormalize) {
      log_sum = logf(sum);
      sum = 0;
      for (int i = ctx.thread(); i < row.count; i += kThreads) {
        const float x = score(p, row, i);
        if (cut.keeps(x, i)) sum += expf(x - top - log_sum - (0.0f - log_sum));
      }
      sum = reduce(ctx, shared, sum, Sum{});
    }
    const float scale = 1.0f / sum;
    unsigned long long best = 0;
    for (int i = ctx.thread(); i < row.count; i += kThreads) {
      const float x = score(p, row, i);
      if (!cut.keeps(x, i)) continue;
      const float e = p.renormalize ? expf(x - top - log_sum - (0.0f - log_sum)) : expf(x - top);
      const float quotient = e * scale / noise_of(p, row, i);
      if (quotient > -1.0f) best = Max{}(best, ranked(quotient, i));
    }
    best = reduce(ctx, shared, best, Max{});
    // Nothing beats -1 where no noise is positive.
    return best == 0 ? -1 : int(0xffffffffu - uint32_t(best));
  }

  BARK_DEVICE static int64_t failed(SampleStatus status) { return -int64_t(status); }

  // The id or minus the status, the same in every thread.
  template <class Context>
  BARK_DEVICE static int64_t sample(const Context& ctx, Shared& shared, const SampleParams& p,
                                    const Row& row) {
    if (row.count == 0) return failed(SampleStatus::kAllMasked);
    unsigned long long best = 0;
    for (int i = ctx.thread(); i < row.count; i += kThreads) {
      const float x = logit(row, i);
      best = Max{}(best, ranked(x < infinity() ? x : infinity(), i));  // NaN as well
    }
    best = reduce(ctx, shared, best, Max{});
    float top = value_of(uint32_t(best >> 32));
    if (top == infinity()) return failed(SampleStatus::kNotFinite);
    if (top == -infinity()) return failed(SampleStatus::kAllMasked);
    if (row.eos >= 0 && p.min_eos_p > 0) {
      float sum = 0;
      for (int i = ctx.thread(); i < row.count; i += kThreads) sum += expf(logit(row, i) - top);
      sum = reduce(ctx, shared, sum, Sum{});
      if (expf(logit(row, row.eos) - top) * (1.0f / sum) > p.min_eos_p) return p.first_id + p.eos;
    }
    if (!row.noise && !row.philox) return p.first_id + column(row, int(0xffffffffu - uint32_t(best)));
    top = top / p.temperature + 0.0f;
    if (top == infinity()) return failed(SampleStatus::kNotFinite);
    if (top == -infinity()) return failed(SampleStatus::kAllMasked);
    for (int i = ctx.thread(); row.scores && i < row.count; i += kThreads) row.scores[i] = divided(p, row, i);
    Cut cut{-infinity(), 0};
    if (p.top_k > 0 && p.top_k < row.count) cut = top_k(ctx, shared, p, row);
    if (p.use_top_p) cut = top_p(ctx, shared, p, row, cut, top);
    const int winner = race(ctx, shared, p, row, cut, top);
    const bool positive = winner >= 0 && (row.philox || row.noise[column(row, winner)] > 0);
    if (!positive) return failed(SampleStatus::kBadNoise);
    return p.first_id + column(row, winner);
  }

  BARK_DEVICE static void move_on(const NextStep& next, int64_t row, int64_t rows, int64_t id) {
    const int64_t count = next.count[row];
    if (count < next.room) next.drawn[count * rows + row] = id;
    next.ids[row] = id;
    next.count[row] = count + 1;
    next.length[row] += 1;
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    ctx.release_next();
    ctx.wait_for_previous();
    draw(ctx, p, ctx.block());
  }

  // The token of one row. Shared memory is free again when a thread returns.
  template <class Context>
  BARK_DEVICE static void draw(const Context& ctx, const Params& p, int64_t n) {
    Shared& shared = *reinterpret_cast<Shared*>(ctx.shared());
    float* scores = reinterpret_cast<float*>(ctx.shared() + sizeof(Shared));
    const SampleParams rules = with_rules(p.sample, p.rules, n);
    const int64_t id = sample(ctx, shared, rules, row_of(p, rules, n, scores));
    // Whoever read the row's count, for its noise, has passed a barrier since.
    if (ctx.thread() != 0) return;
    p.ids[n] = id;
    if (p.next.count) move_on(p.next, n, p.rows, id);
  }
};

template <class Executor>
void launch_fused_sample(Executor& executor, const FusedSampleParams& p) {
  with_float_type(p.sample.dtype,
                  [&](auto zero) { executor.template launch<FusedSample<decltype(zero)>>(p); });
}

}  // namespace bark_accel::cuda
