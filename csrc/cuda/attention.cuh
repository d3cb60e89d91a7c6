// Attention of a few new tokens over a static cache, split along the cache (split-K, "flash decoding"): every
// block appends and attends its own share of the positions for one (batch row, head); a second kernel, or the
// product that reads them (gemv_input.cuh), combines the shares. Lengths are read on the device, so that a
// captured graph replays at any length; shares past them are empty. A row whose length does not fit the cache
// writes nothing and gives NaN.
#pragma once

#include "gemv_input.cuh"

namespace bark_accel::cuda {

constexpr int64_t kMostTokens = 16;
constexpr int64_t kMostHeadSize = 256;
constexpr int64_t kMostPositions = 256;  // of one share
constexpr int64_t kWantedBlocks = 132;   // one for each multiprocessor of the largest GPUs of today
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

BARK_BOTH bool cache_aligned(const CacheView& cache, int64_t element) {
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

  BARK_BOTH static int columns(const Params& p) { return (int(p.head_dim) + kLoad - 1) / kLoad; }
  BARK_BOTH static int most_positions(const Params& p) {
    return (int(p.capacity) + int(p.splits) - 1) / int(p.splits);
  }

  static Grid grid(const Params& p) {
    const int64_t query = p.tokens * p.head_dim, scores = p.tokens * most_positions(p);
    return {p.batch * p.heads * p.splits, kThreads,
            int64_t(sizeof(float)) * (query + scores + kThreads * kLoad)};
  }

  struct Share {
    int row, head, split;
    int length, begin, end;  // positions; nothing where the length does not fit
    Cache *keys, *values;
  };

  BARK_DEVICE static int lesser(int a, int b) { return a < b ? a : b; }

  template <class Context>
  BARK_DEVICE static Share share_of(const Context& ctx, const Params& p) {
    Share s;
    const int block = int(ctx.block()), splits = int(p.splits), heads = int(p.heads);
    const int pair = block / splits;
    s.split = block - pair * splits;
    s.row = pair / heads;
    s.head = pair - s.row * heads;
    const int64_t length = p.lengths[s.row];
    const bool fits = length >= 0 && length <= p.capacity - p.tokens;
    s.length = fits ? int(length) : 0;
    const int total = fits ? s.length + int(p.tokens) : 0, size = (total + splits - 1) / splits;
    s.begin = lesser(s.split * size, total);
    s.end = lesser(s.begin + size, total);
    const CacheView& c = p.cache;
    s.keys = static_cast<Cache*>(c.keys) + s.row * c.key_strides[0] + s.head * c.key_strides[1];
    s.values = static_cast<Cache*>(c.values) + s.row * c.value_strides[0] + s.head * c.value_strides[1];
    return s;
  }

  // Row t of what this batch row and head brings.
  BARK_DEVICE static const Source* source(const void* base, const int64_t (&strides)[3], const Share& s,
                                          int t) {
    return static_cast<const Source*>(base) + s.row * strides[0] + t * strides[1] + s.head * strides[2];
  }

  template <class Context>
  BARK_DEVICE static void append(const Context& ctx, const Params& p, const Share& s) {
    const int first = s.begin > s.length ? s.begin : s.length, size = int(p.head_dim);
    const int count = (s.end - first) * size;
    for (int i = ctx.thread(); i < count; i += kThreads) {
      const int at = first + i / size, d = i % size, t = at - s.length;
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
    const int part = ctx.thread() % kGroup, size = int(p.head_dim), room = most_positions(p);
    for (int base = s.begin; base < s.end;
         base += kThreads / kGroup) {  // the same for every lane: they shuffle
      const int at = base + ctx.thread() / kGroup;
      const Cache* key = s.keys + lesser(at, s.end - 1) * p.cache.key_strides[2];
      for (int t = 0; t < int(p.tokens); ++t) {
        float dot = 0;
        for (int d = part * kLoad; d < size; d += kGroup * kLoad) {
          float k[kLoad];
          load_vector(key + d, size - d, p.aligned, k);
          BARK_UNROLL
          for (int e = 0; e < kLoad; ++e) {
            if (d + e < size) dot += k[e] * query[t * size + d + e];
          }
        }
        dot = warp_reduce(ctx, dot, Sum{}, kGroup);
        if (part == 0 && at < s.end) {
          scores[t * room + at - s.begin] = at <= s.length + t ? dot : -infinity();
        }
      }
    }
  }

  // Scores become exponentials; their statistics go to memory.
  template <class Context>
  BARK_DEVICE static void weigh(const Context& ctx, const Params& p, const Share& s, float* scores) {
    for (int t = warp_of(ctx); t < int(p.tokens); t += kThreads / kWarp) {
      float* row = scores + t * most_positions(p);
      float top = -infinity(), sum = 0;
      for (int i = lane_of(ctx); i < s.end - s.begin; i += kWarp) top = larger_float(top, row[i]);
      top = warp_reduce(ctx, top, LargerFloat{});
      for (int i = lane_of(ctx); i < s.end - s.begin; i += kWarp) {
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

  BARK_DEVICE static int64_t share_index(const Params& p, const Share& s, int t) {
    return ((int64_t(s.row) * p.tokens + t) * p.heads + s.head) * p.splits + s.split;
  }

  // Threads are (group of positions, column of kLoad elements); the groups are summed in shared memory.
  template <class Context>
  BARK_DEVICE static void mix(const Context& ctx, const Params& p, const Share& s, const float* scores,
                              float* partial) {
    const int width = columns(p), size = int(p.head_dim), room = most_positions(p);
    const int groups = kThreads / width, group = ctx.thread() / width;
    const int d = (ctx.thread() - group * width) * kLoad;
    for (int t = 0; t < int(p.tokens); ++t) {
      const float* weights = scores + t * room;
      float acc[kLoad] = {};
      for (int at = s.begin + group; group < groups && at < s.end; at += groups) {
        float v[kLoad];
        load_vector(s.values + at * p.cache.value_strides[2] + d, size - d, p.aligned, v);
        BARK_UNROLL
        for (int e = 0; e < kLoad; ++e) acc[e] += weights[at - s.begin] * v[e];
      }
      if (t > 0) ctx.barrier();
      BARK_UNROLL
      for (int e = 0; e < kLoad; ++e) partial[e * kThreads + ctx.thread()] = acc[e];
      ctx.barrier();
      for (int i = ctx.thread(); i < size; i += kThreads) {
        float sum = 0;
        for (int g = 0; g < groups; ++g) sum += partial[i % kLoad * kThreads + g * width + i / kLoad];
        p.shares[share_index(p, s, t) * size + i] = sum;
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
    const int size = int(p.head_dim);
    for (int i = ctx.thread(); i < int(p.tokens) * size; i += kThreads) {
      query[i] = to_float(source(p.query, p.query_strides, s, i / size)[i % size]) * scale;
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
    const SharesInput in{p.shares, p.stats, int(p.splits), int(p.head_dim)};
    for (int d = ctx.thread(); d < in.head_dim; d += kThreads) {
      static_cast<Out*>(p.out)[ctx.block() * in.head_dim + d] = from_float<Out>(combined(in, ctx.block(), d));
    }
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
