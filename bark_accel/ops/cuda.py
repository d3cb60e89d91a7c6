"""The ops on NVIDIA GPUs: our kernels for decoding and sampling, torch's tensor-core products for blocks of tokens.

As :mod:`bark_accel.ops.native`, with one difference: `decode_step` and `static_cache_attention` (up to 16 tokens) do
not look at ids and lengths, which are on the device. Those that do not fit give NaN, which the samplers refuse.
"""

from dataclasses import replace

from . import graph_draw, native, reference
from .interface import Ops

OPS = replace(
    Ops.of(native),
    float32_linear=reference.float32_linear,
    float32_attention=reference.float32_attention,
    int16_linear=reference.int16_linear,
    int8_linear=reference.int8_linear,
    int16_attention=reference.int16_attention,
    draw_next=graph_draw.draw_next,
)
