"""Schemas of the ops; the compiled library registers their implementations. (torch 2.11 takes tags only from here.)"""

from __future__ import annotations

import functools

import torch

_RULES = (
    "Tensor allowed, Tensor? min_eos_p=None, Tensor? temperature=None, Tensor? top_k=None, Tensor? top_p=None, "
    "bool renormalize=True"
)
SCHEMAS = (
    f"fused_sample(Tensor logits, Tensor? noise, int first_id, {_RULES}) -> Tensor",
    # Waits for no device: ids of rows that cannot be sampled are minus their status (`sample_checks`).
    f"fused_sample.unchecked(Tensor logits, Tensor? noise, int first_id, {_RULES}) -> Tensor",
    f"fused_multinomial(Tensor logits, Generator? generator, int vocab_size, int first_id, {_RULES}) -> Tensor",
    f"fused_multinomial.state(Tensor logits, Tensor(a!) state, int vocab_size, int first_id, {_RULES}) -> Tensor",
    f"fused_multinomial.states(Tensor logits, Tensor(a!)[] states, int vocab_size, int first_id, {_RULES}) -> Tensor",
    "draw_next(Tensor logits, Tensor? philox, int vocab_size, Tensor(a!) ids, Tensor(b!) drawn, Tensor(c!) count, "
    f"Tensor(d!) length, int first_id, {_RULES}) -> Tensor",
    "codebook_embedding_sum(Tensor codes, Tensor[] tables, Tensor positions) -> Tensor",
    "static_cache_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor length) -> Tensor",
    "decode_step(Tensor ids, Tensor token_table, Tensor positions, Tensor?[] weights, float[] eps, Tensor head, "
    "Tensor? head_scales, int num_heads, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor length) -> Tensor",
    "decode_tokens(Tensor(a!) ids, Tensor token_table, Tensor positions, Tensor?[] weights, float[] eps, "
    "Tensor[] heads, Tensor?[] head_scales, int num_heads, Tensor(b!) key_cache, Tensor(c!) value_cache, "
    "Tensor(d!) length, Tensor(e!) drawn, Tensor(f!) count, Tensor limit, int stop, Tensor? philox, int vocab_size, "
    "int[] first_ids, Tensor[] allowed, Tensor? min_eos_p=None, Tensor? temperature=None, Tensor? top_k=None, "
    "Tensor? top_p=None, bool renormalize=True) -> Tensor",
    "int16_linear(Tensor input, Tensor weight, Tensor? scales=None, Tensor? bias=None, bool gelu=False) -> Tensor",
    "int8_linear(Tensor input, Tensor weight, Tensor scales, Tensor? bias=None, bool gelu=False) -> Tensor",
    "pack_linear(Tensor weight, Tensor? scales=None, bool int8_blocks=False) -> Tensor",
    "packed_linear(Tensor input, Tensor packed, Tensor? bias=None, bool gelu=False) -> Tensor",
    "float32_linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? residual=None, bool gelu=False) -> Tensor",
    "float32_conv(Tensor input, Tensor before, Tensor weight, Tensor? bias=None, Tensor? residual=None, "
    "int dilation=1, bool elu=False) -> Tensor",
    "lstm_layer(Tensor gates, Tensor weight, Tensor(a!) hidden, Tensor(b!) cell) -> Tensor",
    "float32_attention(Tensor query, Tensor key, Tensor value, bool causal=False) -> Tensor",
    "int16_attention(Tensor query, Tensor key, Tensor value, bool causal=False) -> Tensor",
)


@functools.cache
def define() -> torch.library.Library:
    """Define the ops, once; they stay as long as the process.

    Raises
    ------
    ImportError
        Another copy of the package has defined them.
    """
    try:
        library = torch.library.Library("bark_accel", "DEF")
    except RuntimeError as error:
        raise ImportError(
            "bark_accel: expected to define its ops once in a process, but another copy of it, or itself before it was "
            "imported anew, has defined them; start a new process"
        ) from error
    for schema in SCHEMAS:
        seeded = (torch.Tag.nondeterministic_seeded,) if "Generator" in schema else ()
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *seeded))
    return library
