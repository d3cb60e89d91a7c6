"""Arguments that each op accepts, and a call with one of them replaced."""

# ruff: noqa: E501 (one table row per refusal)

from __future__ import annotations

from typing import Any

import torch
from support.op_calls import call

from .conftest import attention_inputs, decode_inputs, embedding_inputs, exponential

SAMPLE = {
    "logits": lambda: torch.randn(2, 8),
    "noise": lambda: exponential(2, 12),
    "first_id": lambda: 4,
    "allowed": lambda: torch.tensor([[5, 10, 11]]),
    "top_k": lambda: torch.tensor([3, 0]),
}
EMBEDDING = dict(
    zip(
        ("codes", "tables", "positions"),
        ((lambda i=i: embedding_inputs(2, 5, 4, 3, 8)[i]) for i in range(3)),
        strict=True,
    )
)
ATTENTION = dict(
    zip(
        ("query", "key", "value", "key_cache", "value_cache", "length"),
        ((lambda i=i: attention_inputs(2, 3, 2, 8, 5)[i]) for i in range(6)),
        strict=True,
    )
)
DECODE_NAMES = (
    *("ids", "token_table", "positions", "weights", "eps", "head", "head_scales", "num_heads"),
    *("key_cache", "value_cache", "length"),
)
DECODE = dict(
    zip(
        DECODE_NAMES,
        ((lambda i=i: decode_inputs(2, 3, 24, 2, 5, torch.int8)[i]) for i in range(11)),
        strict=True,
    )
)
FLOAT32_LINEAR = {
    "input": lambda: torch.randn(3, 70),
    "weight": lambda: torch.randn(5, 70),
    "bias": lambda: torch.randn(5),
    "residual": lambda: torch.randn(3, 5),
}
FLOAT32_CONV = {
    "input": lambda: torch.randn(2, 9, 7),
    "before": lambda: torch.randn(2, 4, 7),
    "weight": lambda: torch.randn(3, 7, 5),
    "bias": lambda: torch.randn(5),
    "residual": lambda: torch.randn(2, 9, 5),
    "dilation": lambda: 2,
}
LSTM_LAYER = {
    "gates": lambda: torch.randn(2, 3, 128),
    "weight": lambda: torch.randn(2, 32, 4, 16),
    "hidden": lambda: torch.randn(2, 32),
    "cell": lambda: torch.randn(2, 32),
}
FLOAT32_ATTENTION = {
    "query": lambda: torch.randn(2, 3, 2, 8),
    "key": lambda: torch.randn(2, 2, 9, 8),
    "value": lambda: torch.randn(2, 2, 9, 8),
    "causal": lambda: True,
}
INT16_LINEAR = {
    "input": lambda: torch.randn(3, 70),
    "weight": lambda: torch.ones(5, 70, dtype=torch.int8),
    "scales": lambda: torch.rand(5, 2),
    "bias": lambda: torch.randn(5),
}
INT16_ATTENTION = {
    "query": lambda: torch.randn(2, 3, 2, 8),
    "key": lambda: torch.randn(2, 2, 9, 8).half(),
    "value": lambda: torch.randn(2, 2, 9, 8).half(),
    "causal": lambda: True,
}
MULTINOMIAL = {
    "logits": SAMPLE["logits"],
    "generator": lambda: torch.Generator().manual_seed(0),
    "vocab_size": lambda: 12,
    **{key: SAMPLE[key] for key in ("first_id", "allowed", "top_k")},
}
VALID = {
    "fused_sample": SAMPLE,
    "fused_multinomial": MULTINOMIAL,
    "codebook_embedding_sum": EMBEDDING,
    "static_cache_attention": ATTENTION,
    "decode_step": DECODE,
    "float32_linear": FLOAT32_LINEAR,
    "float32_conv": FLOAT32_CONV,
    "lstm_layer": LSTM_LAYER,
    "float32_attention": FLOAT32_ATTENTION,
    "int16_linear": INT16_LINEAR,
    "int8_linear": INT16_LINEAR,
    "int16_attention": INT16_ATTENTION,
}


def weights(index: int, value: torch.Tensor | None, *, float_matrices: bool = False) -> list[torch.Tensor | None]:
    """Of two layers of width 24, one entry of the second replaced (of the first: less 16): 0 norm_1, 2 qkv, 5 out, 8 norm_2, 10 and 13 MLP."""
    dtype = torch.float32 if float_matrices else torch.int8
    changed = decode_inputs(2, 3, 24, 2, 5, dtype)[3]
    changed[16 + index] = value
    return changed


NEEDS_GRAD = "requires_grad"


def run(backend: Any, op: str, arguments: dict[str, Any]) -> torch.Tensor:
    named = op != "decode_step"  # takes its arguments bundled
    return getattr(backend, op)(**arguments) if named else call(backend, op, *arguments.values())


def call_with(backend: Any, op: str, name: str, value: Any) -> None:
    arguments = {key: make() for key, make in VALID[op].items()}
    arguments[name] = value
    written = {key: arguments[key] for key in ("key_cache", "value_cache", "hidden", "cell") if key in arguments}
    before = {key: cache.clone() for key, cache in written.items()}
    try:
        run(backend, op, arguments)
    finally:
        assert all(cache.is_meta or torch.equal(cache, before[key]) for key, cache in written.items())
