"""The ops in plain torch, for any device: ``backend="torch"``, and the reference of :mod:`bark_accel.ops`.

Same names, arguments, results and error types; see :mod:`bark_accel.ops` for shapes. Not for autograd either:
call them under ``torch.no_grad()``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NEG_INF = float("-inf")
INT8_GROUP = 64
"""Numbers of an int8 weight's row that share a scale."""
MAX_HEAD_SIZE = 256


def fused_sample(
    logits: Tensor,
    noise: Tensor | None,
    first_id: int,
    allowed_begin: int,
    allowed_end: int,
    eos_id: int = -1,
    min_eos_p: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    renormalize: bool = True,
) -> Tensor:
    """Plain-torch twin of :func:`bark_accel.ops.fused_sample`."""
    _check_sample_inputs(logits, noise, first_id, allowed_begin, allowed_end, eos_id)
    _check_sample_options(min_eos_p, temperature, top_k, top_p)
    scores = _mask_disallowed(logits.float(), first_id, allowed_begin, allowed_end, eos_id)
    _check_scores(scores)
    if eos_id >= 0 and min_eos_p > 0:
        scores = _prioritize_eos(scores, eos_id - first_id, min_eos_p)
    if noise is None:
        return scores.argmax(dim=-1) + first_id
    scores = scores / temperature
    _check_scores(scores)
    if top_k > 0:
        scores = _keep_top_k(scores, top_k)
    if top_p < 1.0:
        scores = _keep_top_p(scores, top_p)
    if renormalize:
        scores = scores.log_softmax(dim=-1)
    noise = noise[:, first_id : first_id + scores.shape[-1]]
    winner = (scores.softmax(dim=-1) / noise).argmax(dim=-1)
    positive = noise.gather(1, winner[:, None]).flatten() > 0
    _require(
        bool(positive.all()),
        "fused_sample",
        f"expected noise > 0 (torch.Tensor.exponential_), got none in row {int(positive.int().argmin())}",
    )
    return winner + first_id


def codebook_embedding_sum(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Plain-torch twin of :func:`bark_accel.ops.codebook_embedding_sum`."""
    _check_embedding_inputs(codes, tables, positions)
    total = tables[0][codes[..., 0].long()].float()
    for i, table in enumerate(tables[1:], start=1):
        total = total + table[codes[..., i].long()].float()
    return total + positions[: codes.shape[1]].float()


def static_cache_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    """Plain-torch twin of :func:`bark_accel.ops.static_cache_attention`."""
    _check_attention_inputs(query, key, value, key_cache, value_cache, length)
    batch, tokens, heads, head_dim = query.shape
    start = int(length.item())
    end = start + tokens
    key_cache[:, :, start:end] = key.transpose(1, 2)
    value_cache[:, :, start:end] = value.transpose(1, 2)
    scores = query.transpose(1, 2).float() @ key_cache[:, :, :end].float().transpose(-1, -2)
    scores = scores * (1.0 / math.sqrt(head_dim))
    if tokens > 1:
        future = torch.ones(tokens, end, dtype=torch.bool, device=query.device).triu(diagonal=start + 1)
        scores = scores.masked_fill(future, NEG_INF)
    mixed = scores.softmax(dim=-1) @ value_cache[:, :, :end].float()
    return mixed.transpose(1, 2).reshape(batch, tokens, heads * head_dim).to(query.dtype)


def int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Plain-torch twin of :func:`bark_accel.ops.int16_linear`: 16-bit weights take the device's own 16-bit product."""
    _check_int16_linear_inputs(input, weight, scales, bias)
    if scales is not None:
        weight = weight.float() * scales.repeat_interleave(INT8_GROUP, dim=1)[:, : weight.shape[1]]
    product = F.linear(input.to(weight.dtype), weight).float()
    if bias is not None:
        product = product + bias
    return F.gelu(product) if gelu else product


def int16_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Plain-torch twin of :func:`bark_accel.ops.int16_attention`, in the keys' dtype."""
    _check_int16_attention_inputs(query, key, value, causal)
    tokens, keys = query.shape[1], key.shape[2]
    mask = None
    if causal and tokens > 1:
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(diagonal=keys - tokens)
    attended = F.scaled_dot_product_attention(query.transpose(1, 2).to(key.dtype), key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).float()


def _mask_disallowed(scores: Tensor, first_id: int, begin: int, end: int, eos_id: int) -> Tensor:
    ids = torch.arange(first_id, first_id + scores.shape[-1], device=scores.device)
    allowed = ((ids >= begin) & (ids < end)) | (ids == eos_id)
    return torch.where(allowed, scores, NEG_INF)


def _prioritize_eos(scores: Tensor, eos: int, min_eos_p: float) -> Tensor:
    only_eos = torch.full_like(scores, NEG_INF)
    only_eos[:, eos] = scores[:, eos]
    stop = scores.softmax(dim=-1)[:, eos, None] > min_eos_p
    return torch.where(stop, only_eos, scores)


def _keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    kth = torch.topk(scores, min(top_k, scores.shape[-1])).values[:, -1, None]
    return scores.masked_fill(scores < kth, NEG_INF)


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    # Stable, so that ties go by index on every device; Transformers relies on what torch.sort happens to do.
    ordered, order = torch.sort(scores, stable=True)
    remove = ordered.softmax(dim=-1).cumsum(dim=-1) <= (1 - top_p)
    remove[:, -1] = False
    return scores.masked_fill(remove.scatter(1, order, remove), NEG_INF)


def _require(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{op}: {message}")


def _require_one_device(op: str, *tensors: Tensor | None) -> None:
    devices = sorted({str(t.device) for t in tensors if t is not None})
    _require(len(devices) == 1, op, f"expected all tensors on one device, got {' and '.join(devices)}")


def _require_float(op: str, name: str, tensor: Tensor) -> None:
    accepted = (torch.float32, torch.float16, torch.bfloat16)
    _require(
        tensor.dtype in accepted,
        op,
        f"expected {name} of dtype float32, float16 or bfloat16, got {tensor.dtype}",
    )


def _require_no_grad(op: str, *tensors: Tensor) -> None:
    _require(
        not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)),
        op,
        "expected torch.no_grad() or inputs that need no gradient, got requires_grad=True",
    )


def _check_sample_inputs(
    logits: Tensor, noise: Tensor | None, first_id: int, begin: int, end: int, eos_id: int
) -> None:
    op = "fused_sample"
    _require_one_device(op, logits, noise)
    _require(logits.dim() == 2, op, f"expected logits of shape [N, L], got {list(logits.shape)}")
    _require_float(op, "logits", logits)
    _require_no_grad(op, logits)
    stop = first_id + logits.shape[1]
    _require(first_id >= 0, op, f"expected first_id >= 0, got {first_id}")
    _require(
        first_id <= begin < end <= stop,
        op,
        f"expected a non-empty allowed range inside [{first_id}, {stop}), got [{begin}, {end})",
    )
    _require(
        eos_id < 0 or first_id <= eos_id < stop,
        op,
        f"expected eos_id -1 or inside [{first_id}, {stop}), got {eos_id}",
    )
    if noise is None:
        return
    _require(noise.dim() == 2, op, f"expected noise of shape [N, V], got {list(noise.shape)}")
    _require(noise.dtype == torch.float32, op, f"expected noise of dtype float32, got {noise.dtype}")
    _require(
        noise.shape[0] == logits.shape[0],
        op,
        f"expected noise for {logits.shape[0]} rows, got {noise.shape[0]}",
    )
    _require(noise.shape[1] >= stop, op, f"expected noise for at least {stop} ids, got {noise.shape[1]}")


def _check_sample_options(min_eos_p: float, temperature: float, top_k: int, top_p: float) -> None:
    op = "fused_sample"
    _require(min_eos_p >= 0, op, f"expected min_eos_p >= 0 (0: off), got {min_eos_p}")
    _require(
        temperature > 0 and math.isfinite(temperature),
        op,
        f"expected a finite temperature > 0, got {temperature}",
    )
    _require(top_k >= 0, op, f"expected top_k >= 0 (0: off), got {top_k}")
    _require(0 <= top_p <= 1, op, f"expected top_p in [0, 1] (1: off), got {top_p}")


def _check_scores(scores: Tensor) -> None:
    op = "fused_sample"
    bad = (~(scores < math.inf)).any(dim=-1)
    if bad.any():
        _require(
            False,
            op,
            "expected allowed logits without NaN or +inf, also after the division by temperature, "
            f"got one in row {int(bad.nonzero()[0])}",
        )
    masked = (scores == NEG_INF).all(dim=-1)
    if masked.any():
        _require(
            False,
            op,
            f"expected at least one allowed logit above -inf, got none in row {int(masked.nonzero()[0])}",
        )


def _check_embedding_inputs(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> None:
    op = "codebook_embedding_sum"
    _require_one_device(op, codes, *tables, positions)
    _require(codes.dim() == 3, op, f"expected codes of shape [B, T, K], got {list(codes.shape)}")
    _require(
        codes.dtype in (torch.int32, torch.int64),
        op,
        f"expected codes of dtype int32 or int64, got {codes.dtype}",
    )
    _require(
        0 < len(tables) <= codes.shape[2],
        op,
        f"expected 1 to {codes.shape[2]} tables (one per codebook), got {len(tables)}",
    )
    first = tables[0]
    _require_float(op, "tables", first)
    for table in tables:
        _require(table.dim() == 2, op, f"expected every table of shape [V, C], got {list(table.shape)}")
        _require(
            table.shape == first.shape and table.dtype == first.dtype,
            op,
            f"expected every table of shape {list(first.shape)} and dtype {first.dtype}, "
            f"got {list(table.shape)} and {table.dtype}",
        )
    _require(
        positions.dim() == 2 and positions.shape[1] == first.shape[1] and positions.dtype == first.dtype,
        op,
        f"expected positions of shape [P, {first.shape[1]}] and dtype {first.dtype}, "
        f"got {list(positions.shape)} and {positions.dtype}",
    )
    _require(
        positions.shape[0] >= codes.shape[1],
        op,
        f"expected at least {codes.shape[1]} positions (one per frame), got {positions.shape[0]}",
    )
    _require_no_grad(op, positions, *tables)
    _check_codes(codes, len(tables), first.shape[0])


def _check_codes(codes: Tensor, count: int, vocabulary: int) -> None:
    used = codes[:, :, :count]
    bad = (used < 0) | (used >= vocabulary)
    if bad.any():
        row, frame, codebook = bad.nonzero()[0].tolist()
        _require(
            False,
            "codebook_embedding_sum",
            f"expected codes in [0, {vocabulary}), got {int(used[row, frame, codebook])} "
            f"in codebook {codebook}, frame {frame}, batch row {row}",
        )


def _check_attention_inputs(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> None:
    op = "static_cache_attention"
    _require_one_device(op, query, key, value, key_cache, value_cache, length)
    _require(query.dim() == 4, op, f"expected query of shape [B, T, H, D], got {list(query.shape)}")
    _require_float(op, "query", query)
    batch, tokens, heads, head_dim = query.shape
    capacity = key_cache.shape[2] if key_cache.dim() == 4 else -1
    cache_shape = (batch, heads, capacity, head_dim)
    for name, tensor, shape in (
        ("key", key, query.shape),
        ("value", value, query.shape),
        ("key_cache", key_cache, cache_shape),
        ("value_cache", value_cache, cache_shape),
    ):
        _require(
            tuple(tensor.shape) == tuple(shape) and tensor.dtype == query.dtype,
            op,
            f"expected {name} of shape {list(shape)} and dtype {query.dtype}, "
            f"got {list(tensor.shape)} and {tensor.dtype}",
        )
    _require_no_grad(op, query, key, value, key_cache, value_cache)
    _require(
        length.dtype == torch.int64 and tuple(length.shape) == (1,),
        op,
        f"expected length as an int64 tensor of shape [1], got {length.dtype} of shape {list(length.shape)}",
    )
    start = int(length.item())
    _require(start >= 0, op, f"expected length >= 0, got {start}")
    _require(
        start + tokens <= capacity,
        op,
        f"expected length + tokens <= capacity {capacity}, got {start} + {tokens}",
    )


def _require_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _require(
        tuple(tensor.shape) == shape and tensor.dtype == dtype,
        op,
        f"expected {name} of shape {list(shape)} and dtype {dtype}, got {list(tensor.shape)} and {tensor.dtype}",
    )


def _check_int16_linear_inputs(input: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> None:
    op = "int16_linear"
    _require_one_device(op, input, weight, scales, bias)
    _require(input.dim() == 2, op, f"expected input of shape [M, K], got {list(input.shape)}")
    _require(input.dtype == torch.float32, op, f"expected input of dtype float32, got {input.dtype}")
    _require(weight.dim() == 2, op, f"expected weight of shape [N, K], got {list(weight.shape)}")
    outputs, inner = weight.shape
    _require(
        inner == input.shape[1],
        op,
        f"expected weight of shape {[outputs, input.shape[1]]}, got {list(weight.shape)}",
    )
    _require(inner > 0, op, f"expected input of shape [M, K] with K > 0, got {list(input.shape)}")
    is_int8 = weight.dtype == torch.int8
    given = "none" if scales is None else "scales"
    _require(
        is_int8 == (scales is not None),
        op,
        f"expected scales with an int8 weight and only then, got {given} with a weight of dtype {weight.dtype}",
    )
    if scales is None:
        _require_float(op, "weight", weight)
    else:
        _require_shape(op, "scales", scales, (outputs, -(-inner // INT8_GROUP)), torch.float32)
    if bias is not None:
        _require_shape(op, "bias", bias, (outputs,), torch.float32)
    _require_no_grad(op, *(t for t in (input, weight, scales, bias) if t is not None))


def _check_int16_attention_inputs(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> None:
    op = "int16_attention"
    _require_one_device(op, query, key, value)
    _require(query.dim() == 4, op, f"expected query of shape [B, T, H, D], got {list(query.shape)}")
    _require(query.dtype == torch.float32, op, f"expected query of dtype float32, got {query.dtype}")
    batch, tokens, heads, head_dim = query.shape
    limits = f"expected a head size of 1 to {MAX_HEAD_SIZE}, got {head_dim}"
    _require(1 <= head_dim <= MAX_HEAD_SIZE, op, limits)
    _require(key.dim() == 4, op, f"expected key of shape [B, H, S, D], got {list(key.shape)}")
    _require_float(op, "key", key)
    shape = (batch, heads, key.shape[2], head_dim)
    _require_shape(op, "key", key, shape, key.dtype)
    _require_shape(op, "value", value, shape, key.dtype)
    _require(key.shape[2] >= 1, op, f"expected at least one key, got {key.shape[2]}")
    _require(
        not causal or key.shape[2] >= tokens,
        op,
        f"expected at least as many keys as queries ({tokens}) with causal=True, got {key.shape[2]}",
    )
    _require_no_grad(op, query, key, value)
