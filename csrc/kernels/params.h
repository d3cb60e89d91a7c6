// What crosses the border between torch and the kernels: plain structs.
// Strides count elements, not bytes.
#pragma once

#include <cstdint>

namespace bark_accel {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kInt8 };

// Bits only: the kernels convert to float on load.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

enum class SampleStatus : int32_t { kOk = 0, kNotFinite = 1, kAllMasked = 2, kBadNoise = 3 };

// Words in one state of the MT19937 generator.
constexpr int64_t kMt19937Block = 624;

struct SampleParams {
  const void* logits;  // [N, L], unit stride along L
  int64_t row_stride;
  DType dtype;
  // Exponential noise indexed by id, [N, V], or the generator's words that make it, [N, V, 2]: see mt19937.h.
  // Both null: greedy.
  const float* noise;
  const uint32_t* words;
  int64_t noise_stride;  // entries, not words
  int64_t first_id;      // id of logits column 0
  int64_t begin, end;    // allowed columns
  int64_t eos;           // allowed column as well, or -1
  float min_eos_p;
  float temperature;
  int64_t top_k;  // 0: off
  bool use_top_p;
  float top_p_cut;  // float(1 - top_p)
  bool renormalize;
};

struct EmbeddingSumParams {
  const void* codes;  // [B, T, K]
  bool codes_are_int64;
  int64_t codes_strides[3];
  int64_t frames;  // T
  int64_t tables_count;
  const void* const* tables;  // tables_count x [V, C]
  const int64_t* table_strides;
  int64_t vocabulary;     // V
  const void* positions;  // [P, C]
  int64_t position_stride;
  DType dtype;    // of tables and positions
  int64_t width;  // C
  float* out;     // [B, T, C] contiguous
};

struct AttentionParams {
  const void *query, *key, *value;                             // [B, T, H, D], unit stride along D
  int64_t query_strides[3], key_strides[3], value_strides[3];  // B, T, H
  void *key_cache, *value_cache;                               // [B, H, capacity, D], unit stride along D
  int64_t key_cache_strides[3], value_cache_strides[3];        // B, H, capacity
  void* out;                                                   // [B, T, H, D] contiguous
  int64_t batch, tokens, heads, head_dim;
  const int64_t* lengths;  // [B] valid cache entries before this call; negative: the row is left out
  int64_t longest;         // of `lengths`
  int64_t keys;            // entries that the last query sees; query t sees at most its length + t + 1
  float scale;
  DType dtype;
};

struct NormView {
  const float* weight;
  const float* bias;  // or null
  float eps;
};

struct MatrixView {
  const void* weight;  // [N, K], unit stride along K
  int64_t stride, depth;
  DType dtype;
  const float* scales;  // int8: [N, ceil(K / group)]
  int64_t scale_stride, group;
  const float* bias;  // [N] or null
};

struct DecodeLayer {
  NormView norm_1;
  MatrixView qkv, attention_out;
  NormView norm_2;
  MatrixView mlp_in, mlp_out;
};

constexpr int64_t kCacheScaleBytes = 4;  // of the float behind the D numbers of an int8 cache's row

struct CacheView {
  void *keys, *values;  // [B, H, capacity, D], int8: D + kCacheScaleBytes; unit stride along D
  int64_t key_strides[3], value_strides[3];
};

// Row r of the batch is row slots[r] of ids, lengths and caches.
struct DecodeParams {
  const int64_t* ids;  // [slots, T]
  int64_t batch, tokens, width, heads, inner, layers_count, head_rows;
  const void* token_table;  // [V, C]
  const void* positions;    // [P, C]
  int64_t token_stride, position_stride;
  DType table_dtype, cache_dtype;
  const DecodeLayer* layers;
  const CacheView* caches;  // one per layer
  NormView norm_final;
  MatrixView head;
  const int64_t* slots;    // [B]
  const int64_t* lengths;  // [slots] valid cache entries before this call
  int64_t longest;         // of the batch's lengths
  float* logits;           // [B, T, head_rows]
  float* scratch;          // decode_scratch floats
};

// Threads inside one kernel call. wait_all(barrier, size) returns once all of them have called it.
struct Team {
  int64_t rank, size;
  void* barrier;
  void (*wait_all)(void* barrier, int64_t size);

  void wait() const { wait_all(barrier, size); }
};

constexpr int64_t kInt8Group = 64;  // weights that share one scale

struct IntLinearParams {
  const float* input;  // [M, K], unit stride along K
  int64_t input_stride;
  const void* weight;  // [N, K], unit stride along K; int8 when scales is set, else of `dtype`
  int64_t weight_stride;
  DType dtype;
  const float* scales;  // [N, ceil(K / kInt8Group)], or null
  int64_t scales_stride;
  const float* bias;  // [N] or null
  float* out;         // [M, N] contiguous
  int64_t rows, columns, inner;
  bool gelu;
  int64_t row_parts;  // tasks a column panel is cut into
  void* packed;       // int16_packed_bytes() or int8_packed_bytes(): the input as integers
  // The weight as int16_pack_columns or int8_pack_columns lays it out, in place of `weight` and `scales`; or
  // null.
  const int32_t* panels;
};

struct Int16AttentionParams {
  const float* query;                        // [B, T, H, D], unit stride along D
  const void *key, *value;                   // [B, H, S, D] of `dtype`, unit stride along D
  int64_t query_strides[3];                  // B, T, H
  int64_t key_strides[3], value_strides[3];  // B, H, S
  DType dtype;
  float* out;  // [B, T, H, D] contiguous
  int64_t batch, tokens, heads, head_dim, keys;
  bool causal;  // query t sees keys 0 .. S - T + t
  float scale;
  void* packed;  // int16_attention_packed_bytes(): keys and values as integers
};

struct Float32LinearParams {
  const float* input;  // [M, K], unit stride along K
  int64_t input_stride;
  const float* weight;  // [N, K], unit stride along K
  int64_t weight_stride;
  const float* bias;      // [N] or null
  const float* residual;  // [M, N], unit stride along N, or null
  int64_t residual_stride;
  float* out;  // [M, N] contiguous
  int64_t rows, columns, inner;
  bool gelu;
  int64_t row_parts;  // tasks a column panel is cut into
  float* packed;      // float32_packed() floats: the input
};

// A causal convolution: the product over the taps of (before, input) with ELU, rows of time.
struct Float32ConvParams {
  // Rows, columns, bias, residual and output. `input` [rows, C] and `inner` C; `weight` [taps, C, N]
  // contiguous.
  Float32LinearParams product;
  const float* before;  // [(taps - 1) * dilation, C], unit stride along C: the inputs before the first
  int64_t before_stride;
  int64_t taps, dilation;
  bool elu;                         // of the inputs
  int64_t row_parts, column_parts;  // a task is a part of each
};

constexpr int64_t kLstmUnits = 16;  // units whose weights stand together

struct LstmParams {
  const float* gates;    // [B, steps, 4, size] contiguous: what the inputs and biases add to each gate
  const float* weight;   // [size / kLstmUnits, size, 4, kLstmUnits]
  float *hidden, *cell;  // [B, size]
  float* out;            // [B, steps, size] contiguous
  int64_t batch, steps, size;
};

struct KernelTable {
  const char* name;

  // Floats of scratch for sample_row with this many allowed ids.
  int64_t (*sample_scratch)(int64_t allowed);
  SampleStatus (*sample_row)(const SampleParams&, int64_t row, float* scratch, int64_t* id);

  void (*mt19937_extend)(uint32_t* words, int64_t count);
  float (*exponential)(const uint32_t* words);

  // Rows are (batch, frame) pairs. Returns row * tables_count + codebook of the first bad code, or -1.
  int64_t (*embedding_sum)(const EmbeddingSumParams&, int64_t row_begin, int64_t row_end);

  // Pairs are (batch, head); queries per block task: attention_block_queries.
  int64_t attention_block_queries;
  int64_t (*attention_scratch)(const AttentionParams&);
  void (*attention_append)(const AttentionParams&, int64_t pair_begin, int64_t pair_end);
  void (*attention_decode)(const AttentionParams&, int64_t pair_begin, int64_t pair_end, float* scratch);
  void (*attention_block)(const AttentionParams&, int64_t task_begin, int64_t task_end, float* scratch);

  // Floats of scratch for a team of this size; decode_step is called by every thread of the team.
  int64_t (*decode_scratch)(const DecodeParams&, int64_t threads);
  void (*decode_step)(const DecodeParams&, const Team&);

  // Panels are kPanelRows rows of the input, tasks kPanelColumns columns of the output times row_parts.
  int64_t int16_panel_rows, int16_panel_columns;
  int64_t (*int16_packed_bytes)(const IntLinearParams&);
  int64_t (*int16_scratch)(const IntLinearParams&);
  void (*int16_pack_rows)(const IntLinearParams&, int64_t panel_begin, int64_t panel_end);
  void (*int16_multiply)(const IntLinearParams&, int64_t task_begin, int64_t task_end, float* scratch);
  // The weight laid out ahead, to[column panels, groups, int16_column_rows, int16_panel_columns], groups of
  // int16_group.
  int64_t int16_column_rows;
  void (*int16_pack_columns)(const IntLinearParams&, int64_t panel_begin, int64_t panel_end, int32_t* to);

  // The same for int8 weights and an input rounded to int8, with the same panels.
  int64_t (*int8_packed_bytes)(const IntLinearParams&);
  int64_t (*int8_scratch)(const IntLinearParams&);
  void (*int8_pack_rows)(const IntLinearParams&, int64_t panel_begin, int64_t panel_end);
  void (*int8_multiply)(const IntLinearParams&, int64_t task_begin, int64_t task_end, float* scratch);
  int64_t int8_column_rows;  // of groups of kInt8Group
  void (*int8_pack_columns)(const IntLinearParams&, int64_t panel_begin, int64_t panel_end, int32_t* to);

  // The same in float32, with the same panels.
  int64_t (*float32_packed)(const Float32LinearParams&);
  int64_t (*float32_scratch)(const Float32LinearParams&);
  void (*float32_pack_rows)(const Float32LinearParams&, int64_t panel_begin, int64_t panel_end);
  void (*float32_multiply)(const Float32LinearParams&, int64_t task_begin, int64_t task_end, float* scratch);

  // Panels of int16_panel_rows rows and int16_panel_columns columns; parts of them are tasks.
  int64_t (*float32_conv_window)(const Float32ConvParams&);  // floats of a packed row panel
  int64_t (*float32_conv_scratch)(const Float32ConvParams&);
  void (*float32_conv)(const Float32ConvParams&, int64_t task_begin, int64_t task_end, float* scratch);

  // Called by every thread of the team.
  void (*lstm_layer)(const LstmParams&, const Team&);

  // Pack tasks are (batch, head, int16_group keys), tasks (batch, head, int16_panel_rows queries).
  int64_t int16_group;
  int64_t (*int16_attention_packed_bytes)(const Int16AttentionParams&);
  int64_t (*int16_attention_scratch)(const Int16AttentionParams&);
  void (*int16_attention_pack)(const Int16AttentionParams&, int64_t task_begin, int64_t task_end);
  void (*int16_attention)(const Int16AttentionParams&, int64_t task_begin, int64_t task_end, float* scratch);
};

const KernelTable& generic_kernels();
#ifdef BARK_ACCEL_X86
const KernelTable& avx2_kernels();
const KernelTable& avx_vnni_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512_vnni_kernels();
#endif
#ifdef BARK_ACCEL_ARM
const KernelTable& neon_kernels();
const KernelTable& neon_dotprod_kernels();
#endif

}  // namespace bark_accel
