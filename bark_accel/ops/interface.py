"""The ops as a generation sees them, and what a decode step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor


class StepWeights(NamedTuple):
    """Tensors of a causal transformer that `decode_step` reads, in the order of the op's schema.

    Attributes
    ----------
    token_table, positions : Tensor [V, C] and [P, C], float32, float16 or bfloat16
        Token t of row b takes position ``length[b] + t``.
    layers : list of 16 tensors or None for each layer, then 2
        Layer: norm_1 (weight [C], bias), qkv (weight [3C, C], bias, scales), attention_out (weight [C, C], bias,
        scales), norm_2 (weight, bias), mlp_in (weight [N, C], bias, scales), mlp_out (weight [C, N], bias, scales);
        then the final norm (weight, bias). LayerNorms and biases are float32; weights float32, float16, bfloat16, or
        int8 with scales [out, ceil(in / 64)] float32 (``weight[n, k] * scales[n, k // 64]`` is meant).
    eps : list of 2 * layers + 1 floats
        Of norm_1 and norm_2 of each layer and of the final norm.
    head, head_scales : Tensor [N', C] as the weights, and its scales or None
        May be some rows of the model's head.
    num_heads : int
    """

    token_table: Tensor
    positions: Tensor
    layers: Sequence[Tensor | None]
    eps: Sequence[float]
    head: Tensor
    head_scales: Tensor | None
    num_heads: int


class StepCache(NamedTuple):
    """Keys and values of all layers, which `decode_step` appends to, in the order of the op's schema.

    Attributes
    ----------
    keys, values : Tensor [layers, B, H, capacity, D], float32, float16 or bfloat16; on a CPU also [..., D + 4] int8
        Unit stride in the last dimension. An entry of int8 is D numbers and the 4 bytes of the float32 that they are
        multiplied with (`bark_accel.ops.int8_entries`).
    length : Tensor [B], int64
        Valid entries of each row. -1: an idle row, which costs nothing; nothing of it is read or written, and its
        result is NaN.
    """

    keys: Tensor
    values: Tensor
    length: Tensor


@dataclass(frozen=True)
class Ops:
    """The ops that a generation uses; `bark_accel.ops.native` has their signatures, shapes and errors.

    `draw_next` (`bark_accel.ops.graph_draw`) is for CUDA graphs, `decode_tokens` (`bark_accel.ops.token_run`) for many
    tokens in one kernel, `pack_linear` and `packed_linear` for weights laid out ahead on a CPU; None where there is
    none.
    """

    fused_sample: Callable[..., Tensor]
    fused_multinomial: Callable[..., Tensor]
    codebook_embedding_sum: Callable[..., Tensor]
    static_cache_attention: Callable[..., Tensor]
    decode_step: Callable[..., Tensor]
    float32_linear: Callable[..., Tensor]
    float32_attention: Callable[..., Tensor]
    int16_linear: Callable[..., Tensor]
    int8_linear: Callable[..., Tensor]
    int16_attention: Callable[..., Tensor]
    draw_next: Callable[..., Tensor] | None = None
    decode_tokens: Callable[..., Tensor] | None = None
    pack_linear: Callable[..., Tensor] | None = None
    packed_linear: Callable[..., Tensor] | None = None

    @classmethod
    def of(cls, module: Any) -> Ops:
        """Take the ops that a module has under these names."""
        return cls(*(getattr(module, field.name) for field in fields(cls) if field.default is MISSING))


@dataclass(frozen=True)
class CodecOps:
    """The ops that EnCodec's decoder runs on; :mod:`bark_accel.ops.native_codec` has the ops of these names.

    `lstm_layer` is None where torch's own LSTM is taken. `frames_at_once` of all rows go through the convolutions at
    once, so that what one leaves, the next finds in the cache; None: all, where a sum might depend on their number.
    """

    float32_conv: Callable[..., Tensor]
    float32_linear: Callable[..., Tensor]
    lstm_layer: Callable[..., Tensor] | None = None
    frames_at_once: int | None = None
