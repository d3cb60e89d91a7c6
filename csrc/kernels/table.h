// Include once, after BARK_ACCEL_ISA is defined: every kernel of that instruction set and their table.
#pragma once

#include "codebook_embedding_sum.h"
#include "decode_step.h"
#include "fused_sample.h"
#include "int16_attention.h"
#include "int16_linear.h"
#include "static_cache_attention.h"

#define BARK_ACCEL_STRING_(x) #x
#define BARK_ACCEL_STRING(x) BARK_ACCEL_STRING_(x)

namespace bark_accel::BARK_ACCEL_ISA {

constexpr KernelTable kTable = {
    BARK_ACCEL_STRING(BARK_ACCEL_ISA),
    sample_scratch,
    sample_row,
    mt19937_extend,
    exponential,
    embedding_sum,
    kBlockQueries,
    attention_scratch,
    attention_append,
    attention_decode,
    attention_block,
    decode_scratch,
    decode_step,
    kPanelRows,
    kPanelColumns,
    int16_packed_bytes,
    int16_scratch,
    int16_pack_rows,
    int16_multiply,
    kGroup,
    int16_attention_packed_bytes,
    int16_attention_scratch,
    int16_attention_pack,
    int16_attention,
};

}  // namespace bark_accel::BARK_ACCEL_ISA
