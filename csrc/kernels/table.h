// Include once, after BARK_ACCEL_ISA is defined: every kernel of that instruction set and their table.
#pragma once

#include "codebook_embedding_sum.h"
#include "decode_step.h"
#include "float32_conv.h"
#include "float32_linear.h"
#include "fused_sample.h"
#include "int16_attention.h"
#include "int16_linear.h"
#include "int8_linear.h"
#include "lstm_layer.h"
#include "static_cache_attention.h"

#define BARK_ACCEL_STRING_(x) #x
#define BARK_ACCEL_STRING(x) BARK_ACCEL_STRING_(x)

namespace bark_accel::BARK_ACCEL_ISA {

constexpr KernelTable kTable = {
    .name = BARK_ACCEL_STRING(BARK_ACCEL_ISA),
    .sample_scratch = sample_scratch,
    .sample_row = sample_row,
    .mt19937_extend = mt19937_extend,
    .exponential = exponential,
    .embedding_sum = embedding_sum,
    .attention_block_queries = kBlockQueries,
    .attention_scratch = attention_scratch,
    .attention_append = attention_append,
    .attention_decode = attention_decode,
    .attention_block = attention_block,
    .decode_scratch = decode_scratch,
    .decode_step = decode_step,
    .int16_panel_rows = kPanelRows,
    .int16_panel_columns = kPanelColumns,
    .int16_packed_bytes = int16_packed_bytes,
    .int16_scratch = int16_scratch,
    .int16_pack_rows = int16_pack_rows,
    .int16_multiply = int16_multiply,
    .int16_column_rows = kColumnRows,
    .int16_pack_columns = int16_pack_columns,
    .int8_packed_bytes = int8_packed_bytes,
    .int8_scratch = int8_scratch,
    .int8_pack_rows = int8_pack_rows,
    .int8_multiply = int8_multiply,
    .int8_column_rows = kInt8ColumnRows,
    .int8_pack_columns = int8_pack_columns,
    .float32_packed = float32_packed,
    .float32_scratch = float32_scratch,
    .float32_pack_rows = float32_pack_rows,
    .float32_multiply = float32_multiply,
    .float32_conv_window = float32_conv_window,
    .float32_conv_scratch = float32_conv_scratch,
    .float32_conv = float32_conv,
    .lstm_layer = lstm_layer,
    .int16_group = kGroup,
    .int16_attention_packed_bytes = int16_attention_packed_bytes,
    .int16_attention_scratch = int16_attention_scratch,
    .int16_attention_pack = int16_attention_pack,
    .int16_attention = int16_attention,
};

}  // namespace bark_accel::BARK_ACCEL_ISA
