"""The ops on NVIDIA GPUs: our kernels for decoding and sampling, torch's tensor-core products for blocks of tokens.

As :mod:`bark_accel.ops.native`, with two differences. `decode_step`, `static_cache_attention` (up to 16 tokens) and
`codebook_embedding_sum` do not look at ids, codes and lengths, which are on the device: those that do not fit give NaN,
which the samplers refuse. And the int16 ops give 16 bits instead of float32.
"""

from dataclasses import replace

from . import graph_draw, native, reference, tensor_cores, token_run
from .interface import Ops

OPS = replace(
    Ops.of(native),
    float32_linear=reference.float32_linear,
    float32_attention=reference.float32_attention,
    int16_linear=tensor_cores.int16_linear,
    int8_linear=tensor_cores.int8_linear,
    int16_attention=tensor_cores.int16_attention,
    draw_next=graph_draw.draw_next,
    decode_tokens=token_run.decode_tokens,
)
