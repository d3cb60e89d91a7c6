// Attention of a few new tokens over a static cache, split along the cache (split-K, "flash decoding"): every
// block appends and attends its own share of the positions for one (batch row, head), and a second kernel
// combines the shares. Lengths are read on the device, so that a captured graph replays at any length;
// shares past them are empty. A row whose length does not fit the cache writes nothing and gives NaN.
#pragma once

#include "numbers.cuh"

namespace bark_accel::cuda {

constexpr int64_t kMostTokens = 16;
constexpr int64_t kMostHeadSize = 256;
constexpr int64_t kMostPositions = 256;  // of one share
constexpr int64_t kWantedBlocks = 264;   // two for each multiprocessor of the largest GPUs of today
constexpr int64_t kFewestPositions = 32;

struct AttentionSplitParams {
  const void *query, *key, *value;                             // [B, T, H, D], unit stride along D
  int64_t query_strides[3], key_strides[3], value_strides[3];  // B, T, H
  CacheView cache;                                             // [B, H, capacity, D]
  const int64_t* lengths;                                      // [B] on the device
  int64_t batch, tokens, heads, head_dim, capacity, splits;
  bool aligned;   // cache rows can be read 16 bytes at a time
  float* shares;  // [B, T, H, splits, D] weighted values, not yet divided
  float* stats;   // [B, T, H, splits, 2] largest score, sum of exponentials
};

struct AttentionCombineParams {
  const float *shares, *stats;
  int64_t rows, head_dim, splits;  // rows: B * T * H
  void* out;                       // [B, T, H * D]
};

inline int64_t attention_splits(int64_t batch, int64_t heads, int64_t capacity) {
  const int64_t wanted = ceil_div(kWantedBlocks, batch * heads);
  return larger(ceil_div(capacity, kMostPositions), smaller(wanted, ceil_div(capacity, kFewestPositions)));
}

inline bool cache_aligned(const CacheView& cache, int64_t element) {
  bool aligned = is_aligned(cache.keys, 0) && is_aligned(cache.values, 0);
  for (int i = 0; i < 3; ++i) {
    aligned =
        aligned && cache.key_strides[i] * element % 16 == 0 && cache.value_strides[i] * element % 16 == 0;
  }
  return aligned;
}

template <class Source, class Cache>
struct AttentionSplit {
  using Params = AttentionSplitParams;
  static constexpr int kThreads = 128;
  static constexpr int kGroup = 8;  // lanes that share a key
  static constexpr int kLoad = kVector<Cache>;

  BARK_BOTH static int64_t columns(const Params& p) { return ceil_div(p.head_dim, kLoad); }
  BARK_BOTH static int64_t most_positions(const Params& p) { return ceil_div(p.capacity, p.splits); }

  static Grid grid(const Params& p) {
    const int64_t query = p.tokens * p.head_dim, scores = p.tokens * most_positions(p);
    return {p.batch * p.heads * p.splits, kThreads,
            int64_t(sizeof(float)) * (query + scores + kThreads * kLoad)};
  }

  struct Share {
    int64_t row, head, split, length, begin, end;
    Cache *keys, *values;
  };

  template <class Context>
  BARK_DEVICE static Share share_of(const Context& ctx, const Params& p) {
    Share s;
    s.split = ctx.block() % p.splits;
    s.head = ctx.block() / p.splits % p.heads;
    s.row = ctx.block() / p.splits / p.heads;
    s.length = p.lengths[s.row];
    const bool fits = s.length >= 0 && s.length <= p.capacity - p.tokens;
    const int64_t total = fits ? s.length + p.tokens : 0, size = ceil_div(total, p.splits);
    s.begin = smaller(s.split * size, total);
    s.end = smaller(s.begin + size, total);
    const CacheView& c = p.cache;
    s.keys = static_cast<Cache*>(c.keys) + s.row * c.key_strides[0] + s.head * c.key_strides[1];
    s.values = static_cast<Cache*>(c.values) + s.row * c.value_strides[0] + s.head * c.value_strides[1];
    return s;
  }

  // Row t of what this batch row and head brings.
  BARK_DEVICE static const Source* source(const void* base, const int64_t (&strides)[3], const Share& s,
                                          int64_t t) {
    return static_cast<const Source*>(base) + s.row * strides[0] + t * strides[1] + s.head * strides[2];
  }

  template <class Context>
  BARK_DEVICE static void append(const Context& ctx, const Params& p, const Share& s) {
    const int64_t first = larger(s.begin, s.length), count = larger(0, s.end - first) * p.head_dim;
    for (int64_t i = ctx.thread(); i < count; i += kThreads) {
      const int64_t at = first + i / p.head_dim, d = i % p.head_dim, t = at - s.length;
      s.keys[at * p.cache.key_strides[2] + d] =
          from_float<Cache>(to_float(source(p.key, p.key_strides, s, t)[d]));
      s.values[at * p.cache.value_strides[2] + d] =
          from_float<Cache>(to_float(source(p.value, p.value_strides, s, t)[d]));
    }
  }

  // scores[t, position - begin]; what a token may not see is -inf
  template <class Context>
  BARK_DEVICE static void score(const Context& ctx, const Params& p, const Share& s, const float* query,
                                float* scores) {
    const int part = ctx.thread() % kGroup;
    for (int64_t base = s.begin; base < s.end;
         base += kThreads / kGroup) {  // the same for every lane: they shuffle
      const int64_t at = base + ctx.thread() / kGroup;
      const Cache* key = s.keys + smaller(at, s.end - 1) * p.cache.key_strides[2];
      for (int64_t t = 0; t < p.tokens; ++t) {
        float dot = 0;
        for (int64_t d = part * kLoad; d < p.head_dim; d += kGroup * kLoad) {
          float k[kLoad];
          load_vector(key + d, p.head_dim - d, p.aligned, k);
          BARK_UNROLL
          for (int e = 0; e < kLoad; ++e) {
            if (d + e < p.head_dim) dot += k[e] * query[t * p.head_dim + d + e];
          }
        }
        dot = warp_reduce(ctx, dot, Sum{}, kGroup);
        if (part == 0 && at < s.end) {
          scores[t * most_positions(p) + at - s.begin] = at <= s.length + t ? dot : -infinity();
        }
      }
    }
  }

  // Scores become exponentials; their statistics go to memory.
  template <class Context>
  BARK_DEVICE static void weigh(const Context& ctx, const Params& p, const Share& s, float* scores) {
    for (int64_t t = warp_of(ctx); t < p.tokens; t += kThreads / kWarp) {
      float* row = scores + t * most_positions(p);
      float top = -infinity(), sum = 0;
      for (int64_t i = lane_of(ctx); i < s.end - s.begin; i += kWarp) top = larger_float(top, row[i]);
      top = warp_reduce(ctx, top, LargerFloat{});
      for (int64_t i = lane_of(ctx); i < s.end - s.begin; i += kWarp) {
        row[i] = top == -infinity() ? 0.0f : expf(row[i] - top);
        sum += row[i];
      }
      sum = warp_reduce(ctx, sum, Sum{});
      if (lane_of(ctx) == 0) {
        float* stats = p.stats + 2 * share_index(p, s, t);
        stats[0] = top;
        stats[1] = sum;
      }
    }
  }

  // NaN wins, so that it is not lost between splits.
  BARK_DEVICE static float larger_float(float a, float b) { return a > b || a != a ? a : b; }
  struct LargerFloat {
    BARK_DEVICE float operator()(float a, float b) const { return larger_float(a, b); }
  };

  BARK_DEVICE static int64_t share_index(const Params& p, const Share& s, int64_t t) {
    return ((s.row * p.tokens + t) * p.heads + s.head) * p.splits + s.split;
  }

  // Threads are (group of positions, column of kLoad elements); the groups are summed in shared memory.
  template <class Context>
  BARK_DEVICE static void mix(const Context& ctx, const Params& p, const Share& s, const float* scores,
                              float* partial) {
    const int64_t groups = kThreads / columns(p), group = ctx.thread() / columns(p);
    const int64_t d = ctx.thread() % columns(p) * kLoad;
    for (int64_t t = 0; t < p.tokens; ++t) {
      const float* weights = scores + t * most_positions(p);
      float acc[kLoad] = {};
      for (int64_t at = s.begin + group; group < groups && at < s.end; at += groups) {
        float v[kLoad];
        load_vector(s.values + at * p.cache.value_strides[2] + d, p.head_dim - d, p.aligned, v);
        BARK_UNROLL
        for (int e = 0; e < kLoad; ++e) acc[e] += weights[at - s.begin] * v[e];
      }
      if (t > 0) ctx.barrier();
      BARK_UNROLL
      for (int e = 0; e < kLoad; ++e) partial[e * kThreads + ctx.thread()] = acc[e];
      ctx.barrier();
      for (int64_t i = ctx.thread(); i < p.head_dim; i += kThreads) {
        float sum = 0;
        for (int64_t g = 0; g < groups; ++g)
          sum += partial[i % kLoad * kThreads + g * columns(p) + i / kLoad];
        p.shares[share_index(p, s, t) * p.head_dim + i] = sum;
      }
    }
  }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    float* query = reinterpret_cast<float*>(ctx.shared());
    float* scores = query + p.tokens * p.head_dim;
    float* partial = scores + p.tokens * most_positions(p);
    const float scale = 1.0f / sqrtf(float(p.head_dim));
    ctx.release_next();
    ctx.wait_for_previous();
    const Share s = share_of(ctx, p);
    for (int64_t i = ctx.thread(); i < p.tokens * p.head_dim; i += kThreads) {
      const int64_t t = i / p.head_dim;
      query[i] = to_float(source(p.query, p.query_strides, s, t)[i % p.head_dim]) * scale;
    }
    append(ctx, p, s);
    ctx.barrier();
    score(ctx, p, s, query, scores);
    ctx.barrier();
    weigh(ctx, p, s, scores);
    ctx.barrier();
    mix(ctx, p, s, scores, partial);
  }
};

// One block for each (batch row, token, head).
template <class Out>
struct AttentionCombine {
  using Params = AttentionCombineParams;
  static constexpr int kThreads = 64;

  static Grid grid(const Params& p) { return {p.rows, kThreads, 0}; }

  template <class Context>
  BARK_DEVICE static void run(const Context& ctx, const Params& p) {
    ctx.release_next();
    ctx.wait_for_previous();
    const int64_t first = ctx.block() * p.splits;
    const float* stats = p.stats + 2 * first;
    float top = -infinity(), total = 0;
    for (int64_t i = 0; i < p.splits; ++i) top = fmaxf(top, stats[2 * i]);
    for (int64_t i = 0; i < p.splits; ++i) total += scaled(stats + 2 * i, top, stats[2 * i + 1]);
    for (int64_t d = ctx.thread(); d < p.head_dim; d += kThreads) {
      float sum = 0;
      for (int64_t i = 0; i < p.splits; ++i) {
        sum += scaled(stats + 2 * i, top, p.shares[(first + i) * p.head_dim + d]);
      }
      static_cast<Out*>(p.out)[ctx.block() * p.head_dim + d] = from_float<Out>(sum / total);
    }
  }

  // Empty shares count nothing. Where all are empty, 0 / 0 makes the result NaN.
  BARK_DEVICE static float scaled(const float* stats, float top, float value) {
    return stats[0] == -infinity() ? 0.0f : expf(stats[0] - top) * value;
  }
};

// `source` is float32 (the decode step) or the caches' own type (the op).
template <class Executor>
void launch_attention_split(Executor& executor, const AttentionSplitParams& p, DType source, DType cache) {
  with_float_type(cache, [&](auto zero) {
    using Cache = decltype(zero);
    source == cache ? executor.template launch<AttentionSplit<Cache, Cache>>(p)
                    : executor.template launch<AttentionSplit<float, Cache>>(p);
  });
}

template <class Executor>
void launch_attention_combine(Executor& executor, const AttentionCombineParams& p, DType out) {
  with_float_type(out, [&](auto zero) { executor.template launch<AttentionCombine<decltype(zero)>>(p); });
}

}  // namespace bark_accel::cuda
