"""The ops on NVIDIA GPUs: our kernels for decoding and sampling, torch's tensor-core products for blocks of tokens.

As :mod:`bark_accel.ops`, with one difference: `decode_step` and `static_cache_attention` (up to 16 tokens) do not look
at ids and lengths, which are on the device. Those that do not fit give NaN, which the samplers refuse.
"""

from .native import (
    codebook_embedding_sum,
    decode_step,
    fused_multinomial,
    fused_sample,
    static_cache_attention,
)
from .reference import float32_attention, float32_linear, int16_attention, int16_linear

__all__ = [
    "codebook_embedding_sum",
    "decode_step",
    "float32_attention",
    "float32_linear",
    "fused_multinomial",
    "fused_sample",
    "int16_attention",
    "int16_linear",
    "static_cache_attention",
]
