"""Input checks of the ops on blocks of tokens in plain torch; csrc/cpu/float32_*.cpp and int*.cpp check the same."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import (
    INT8_GROUP,
    LSTM_UNITS,
    MAX_HEAD_SIZE,
    require,
    require_float,
    require_no_grad,
    require_one_device,
    require_shape,
)


def check_float32_linear_inputs(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    op = "float32_linear"
    require_one_device(op, input, *(t for t in (weight, bias, residual) if t is not None))
    require(input.dim() == 2, op, f"expected input of shape [M, K], got {list(input.shape)}")
    require(input.dtype == torch.float32, op, f"expected input of dtype float32, got {input.dtype}")
    rows, inner = input.shape
    require(inner > 0, op, f"expected input of shape [M, K] with K > 0, got {list(input.shape)}")
    require(weight.dim() == 2, op, f"expected weight of shape [N, K], got {list(weight.shape)}")
    outputs = len(weight)
    require_shape(op, "weight", weight, (outputs, inner), torch.float32)
    if bias is not None:
        require_shape(op, "bias", bias, (outputs,), torch.float32)
    if residual is not None:
        require_shape(op, "residual", residual, (rows, outputs), torch.float32)
    require_no_grad(op, *(t for t in (input, weight, bias, residual) if t is not None))


def check_float32_conv_inputs(
    input: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dilation: int
) -> None:
    op = "float32_conv"
    require_one_device(op, input, before, *(t for t in (weight, bias, residual) if t is not None))
    require(input.dim() == 3, op, f"expected input of shape [B, T, C], got {list(input.shape)}")
    require(input.dtype == torch.float32, op, f"expected input of dtype float32, got {input.dtype}")
    batch, frames, channels = input.shape
    require(weight.dim() == 3, op, f"expected weight of shape [taps, C, N], got {list(weight.shape)}")
    taps, inputs, outputs = weight.shape
    wanted = f"expected weight of shape [taps, C, N] with taps > 0 and C > 0, got {list(weight.shape)}"
    require(taps > 0 and inputs > 0, op, wanted)
    require_shape(op, "weight", weight, (taps, channels, outputs), torch.float32)
    require(dilation > 0, op, f"expected dilation > 0, got {dilation}")
    require_shape(op, "before", before, (batch, (taps - 1) * dilation, channels), torch.float32)
    if bias is not None:
        require_shape(op, "bias", bias, (outputs,), torch.float32)
    if residual is not None:
        require_shape(op, "residual", residual, (batch, frames, outputs), torch.float32)
    require_no_grad(op, *(t for t in (input, before, weight, bias, residual) if t is not None))


def check_lstm_layer_inputs(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> None:
    op = "lstm_layer"
    require_one_device(op, gates, weight, hidden, cell)
    require(weight.dim() == 4, op, f"expected weight of shape [H / 16, H, 4, 16], got {list(weight.shape)}")
    size = weight.shape[1]
    wanted = f"expected weight of shape [H / 16, H, 4, 16] with H a multiple of 16, got {list(weight.shape)}"
    require(size > 0 and size % LSTM_UNITS == 0, op, wanted)
    require_shape(op, "weight", weight, (size // LSTM_UNITS, size, 4, LSTM_UNITS), torch.float32)
    require(gates.dim() == 3, op, f"expected gates of shape [B, T, 4 * H], got {list(gates.shape)}")
    require_shape(op, "gates", gates, (*gates.shape[:2], 4 * size), torch.float32)
    require_shape(op, "hidden", hidden, (gates.shape[0], size), torch.float32)
    require_shape(op, "cell", cell, (gates.shape[0], size), torch.float32)
    shared = hidden.data_ptr() == cell.data_ptr() and hidden.numel() > 0
    require(not shared, op, "expected hidden and cell in separate memory, got overlapping ones")
    require_no_grad(op, gates, weight, hidden, cell)


def check_float32_attention_inputs(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> None:
    op = "float32_attention"
    require_one_device(op, query, key, value)
    require(query.dim() == 4, op, f"expected query of shape [B, T, H, D], got {list(query.shape)}")
    require(query.dtype == torch.float32, op, f"expected query of dtype float32, got {query.dtype}")
    batch, tokens, heads, head_dim = query.shape
    require(head_dim >= 1, op, f"expected a head size of at least 1, got {head_dim}")
    require(key.dim() == 4, op, f"expected key of shape [B, H, S, D], got {list(key.shape)}")
    keys = key.shape[2]
    require(keys >= 1, op, f"expected at least one key, got {keys}")
    for name, tensor in (("key", key), ("value", value)):
        require_shape(op, name, tensor, (batch, heads, keys, head_dim), torch.float32)
    wanted = f"expected at least as many keys as queries ({tokens}) with causal=True, got {keys}"
    require(not causal or keys >= tokens, op, wanted)
    require_no_grad(op, query, key, value)


def check_int8_linear_inputs(input: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    op = "int8_linear"
    require(weight.dtype == torch.int8, op, f"expected weight of dtype int8, got {weight.dtype}")
    check_int16_linear_inputs(input, weight, scales, bias, op)


def check_int16_linear_inputs(
    input: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, op: str = "int16_linear"
) -> None:
    require_one_device(op, input, weight, scales, bias)
    require(input.dim() == 2, op, f"expected input of shape [M, K], got {list(input.shape)}")
    require(input.dtype == torch.float32, op, f"expected input of dtype float32, got {input.dtype}")
    require(weight.dim() == 2, op, f"expected weight of shape [N, K], got {list(weight.shape)}")
    outputs, inner = weight.shape
    require(
        inner == input.shape[1],
        op,
        f"expected weight of shape {[outputs, input.shape[1]]}, got {list(weight.shape)}",
    )
    require(inner > 0, op, f"expected input of shape [M, K] with K > 0, got {list(input.shape)}")
    is_int8 = weight.dtype == torch.int8
    given = "none" if scales is None else "scales"
    require(
        is_int8 == (scales is not None),
        op,
        f"expected scales with an int8 weight and only then, got {given} with a weight of dtype {weight.dtype}",
    )
    if scales is None:
        require_float(op, "weight", weight)
    else:
        require_shape(op, "scales", scales, (outputs, -(-inner // INT8_GROUP)), torch.float32)
    if bias is not None:
        require_shape(op, "bias", bias, (outputs,), torch.float32)
    require_no_grad(op, *(t for t in (input, weight, scales, bias) if t is not None))


def check_int16_attention_inputs(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> None:
    op = "int16_attention"
    require_one_device(op, query, key, value)
    require(query.dim() == 4, op, f"expected query of shape [B, T, H, D], got {list(query.shape)}")
    require(query.dtype == torch.float32, op, f"expected query of dtype float32, got {query.dtype}")
    batch, tokens, heads, head_dim = query.shape
    limits = f"expected a head size of 1 to {MAX_HEAD_SIZE}, got {head_dim}"
    require(1 <= head_dim <= MAX_HEAD_SIZE, op, limits)
    require(key.dim() == 4, op, f"expected key of shape [B, H, S, D], got {list(key.shape)}")
    require_float(op, "key", key)
    shape = (batch, heads, key.shape[2], head_dim)
    require_shape(op, "key", key, shape, key.dtype)
    require_shape(op, "value", value, shape, key.dtype)
    require(key.shape[2] >= 1, op, f"expected at least one key, got {key.shape[2]}")
    require(
        not causal or key.shape[2] >= tokens,
        op,
        f"expected at least as many keys as queries ({tokens}) with causal=True, got {key.shape[2]}",
    )
    require_no_grad(op, query, key, value)
