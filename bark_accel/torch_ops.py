"""The ops in plain torch, for any device: ``backend="torch"``, and the reference of :mod:`bark_accel.ops`.

Same names, arguments, results and error types; see :mod:`bark_accel.ops` for shapes. Not for autograd either:
call them under ``torch.no_grad()``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEG_INF = float("-inf")


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
    op = "fused_sample"
    _check_sample_inputs(op, logits, first_id, allowed_begin, allowed_end, eos_id)
    _check_sample_options(op, min_eos_p, temperature, top_k, top_p)
    if noise is not None:
        _check_noise(op, noise, logits, first_id)
    rules = (first_id, allowed_begin, allowed_end, eos_id)
    return _sample(op, logits, noise, *rules, min_eos_p, temperature, top_k, top_p, renormalize)


def fused_multinomial(
    logits: Tensor,
    generator: torch.Generator | None,
    vocab_size: int,
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
    """Plain-torch twin of :func:`bark_accel.ops.fused_multinomial`."""
    op = "fused_multinomial"
    _check_sample_inputs(op, logits, first_id, allowed_begin, allowed_end, eos_id)
    _check_sample_options(op, min_eos_p, temperature, top_k, top_p)
    _check_source(op, logits, generator, vocab_size, first_id)
    noise = torch.empty(len(logits), vocab_size, dtype=torch.float32, device=logits.device)
    noise.exponential_(generator=generator)
    rules = (first_id, allowed_begin, allowed_end, eos_id)
    return _sample(op, logits, noise, *rules, min_eos_p, temperature, top_k, top_p, renormalize)


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


def _sample(
    op: str,
    logits: Tensor,
    noise: Tensor | None,
    first_id: int,
    allowed_begin: int,
    allowed_end: int,
    eos_id: int,
    min_eos_p: float,
    temperature: float,
    top_k: int,
    top_p: float,
    renormalize: bool,
) -> Tensor:
    scores = _mask_disallowed(logits.float(), first_id, allowed_begin, allowed_end, eos_id)
    _check_scores(op, scores)
    if eos_id >= 0 and min_eos_p > 0:
        scores = _prioritize_eos(scores, eos_id - first_id, min_eos_p)
    if noise is None:
        return scores.argmax(dim=-1) + first_id
    scores = scores / temperature
    _check_scores(op, scores)
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
        op,
        f"expected noise > 0 (torch.Tensor.exponential_), got none in row {int(positive.int().argmin())}",
    )
    return winner + first_id


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


def _check_sample_inputs(op: str, logits: Tensor, first_id: int, begin: int, end: int, eos_id: int) -> None:
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


def _check_noise(op: str, noise: Tensor, logits: Tensor, first_id: int) -> None:
    stop = first_id + logits.shape[1]
    _require_one_device(op, logits, noise)
    _require(noise.dim() == 2, op, f"expected noise of shape [N, V], got {list(noise.shape)}")
    _require(noise.dtype == torch.float32, op, f"expected noise of dtype float32, got {noise.dtype}")
    _require(
        noise.shape[0] == logits.shape[0],
        op,
        f"expected noise for {logits.shape[0]} rows, got {noise.shape[0]}",
    )
    _require(noise.shape[1] >= stop, op, f"expected noise for at least {stop} ids, got {noise.shape[1]}")


def _check_source(op: str, logits: Tensor, generator: torch.Generator | None, vocab_size: int, first_id: int) -> None:
    stop, device = first_id + logits.shape[1], logits.device
    _require(vocab_size >= stop, op, f"expected vocab_size >= {stop}, the end of the logits' ids, got {vocab_size}")
    _require(
        generator is None or generator.device.type == device.type,
        op,
        f"expected a generator on the {device.type}, got {generator.device if generator else None}",
    )


def _check_sample_options(op: str, min_eos_p: float, temperature: float, top_k: int, top_p: float) -> None:
    _require(min_eos_p >= 0, op, f"expected min_eos_p >= 0 (0: off), got {min_eos_p}")
    _require(
        temperature > 0 and math.isfinite(temperature),
        op,
        f"expected a finite temperature > 0, got {temperature}",
    )
    _require(top_k >= 0, op, f"expected top_k >= 0 (0: off), got {top_k}")
    _require(0 <= top_p <= 1, op, f"expected top_p in [0, 1] (1: off), got {top_p}")


def _check_scores(op: str, scores: Tensor) -> None:
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
