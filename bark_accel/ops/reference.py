"""The ops in plain torch, for any device: ``backend="torch"``, and the reference of :mod:`bark_accel.ops`.

Same names, arguments, results and error types; see :mod:`bark_accel.ops` for shapes. Not for autograd either:
call them under ``torch.no_grad()``.

Beyond the CPU, nothing of a decode step waits for the device, so that a CUDA graph can hold it: attention runs over the
whole cache, behind a mask (what is not valid yet has to be finite), and ids, codes and lengths that do not fit give
NaN, which the samplers refuse; nothing is written to the cache then. While a graph is captured a sampler cannot refuse:
the id of such a row is minus one of the status codes of `sample_checks`. The int16 ops, which are about speed on CPUs,
are float16 products there, for tensor cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks as op_checks
from .block_checks import (
    check_float32_attention_inputs,
    check_float32_conv_inputs,
    check_float32_linear_inputs,
    check_int8_linear_inputs,
    check_int16_attention_inputs,
    check_int16_linear_inputs,
    check_lstm_layer_inputs,
)
from .checks import (
    INT8_GROUP,
    NEG_INF,
    check_decode_inputs,
    check_embedding_inputs,
)
from .interface import StepCache, StepWeights
from .multinomial import noise_of_each
from .reference_attention import Places, attend_behind_mask, attend_to_int8
from .reference_attention import static_cache_attention as static_cache_attention
from .sample_checks import (
    ALL_MASKED,
    BAD_NOISE,
    NOT_FINITE,
    check_generators,
    check_noise,
    check_sample_inputs,
    check_source,
    raise_bad_rows,
)


def fused_sample(
    logits: Tensor,
    noise: Tensor | None,
    first_id: int,
    allowed: Tensor,
    min_eos_p: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    renormalize: bool = True,
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.fused_sample`."""
    op = "fused_sample"
    rules = (min_eos_p, temperature, top_k, top_p)
    check_sample_inputs(op, logits, first_id, allowed, *rules)
    if noise is not None:
        check_noise(op, noise, logits, first_id)
    return _checked(op, sample(logits, noise, first_id, allowed, *rules, renormalize))


def fused_multinomial(
    logits: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    vocab_size: int,
    first_id: int,
    allowed: Tensor,
    min_eos_p: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    renormalize: bool = True,
    *,
    checked: bool = True,
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.fused_multinomial`."""
    op = "fused_multinomial"
    rules = (min_eos_p, temperature, top_k, top_p)
    check_sample_inputs(op, logits, first_id, allowed, *rules)
    if isinstance(generator, Sequence):
        check_generators(op, logits, generator, vocab_size, first_id)
        with noise_of_each(generator, vocab_size, logits.device) as noise:
            ids = sample(logits, noise, first_id, allowed, *rules, renormalize)
            return _checked(op, ids) if checked or op_checks.on_host(ids) else ids
    check_source(op, logits, generator, vocab_size, first_id)
    noise = torch.empty(len(logits), vocab_size, dtype=torch.float32, device=logits.device)
    noise.exponential_(generator=generator)
    return _checked(op, sample(logits, noise, first_id, allowed, *rules, renormalize))


def codebook_embedding_sum(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.codebook_embedding_sum`."""
    check_embedding_inputs(codes, tables, positions)
    given = codes[..., : len(tables)].long()
    used = given.clamp(0, len(tables[0]) - 1)
    total = tables[0][used[..., 0]].float()
    for i, table in enumerate(tables[1:], start=1):
        total = total + table[used[..., i]].float()
    total = total + positions[: codes.shape[1]].float()
    return total if op_checks.on_host(codes) else total.masked_fill((given != used).any(-1, keepdim=True), math.nan)


def float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.float32_linear`."""
    check_float32_linear_inputs(input, weight, bias, residual)
    if residual is None or gelu:
        product = F.linear(input, weight, bias)
        product = torch.ops.aten.gelu_(product) if gelu else product
        return product if residual is None else product.add_(residual)
    # Fewer passes over the residual than an addition.
    total = torch.addmm(residual, input, weight.t())
    return total if bias is None else total.add_(bias)


def float32_conv(
    input: Tensor,
    before: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dilation: int = 1,
    elu: bool = False,
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.float32_conv`: a matrix product for each tap."""
    check_float32_conv_inputs(input, before, weight, bias, residual, dilation)
    frames, outputs = input.shape[1], weight.shape[2]
    shifts = [tap * dilation for tap in range(weight.shape[0])]
    joined = _joined(before, input, elu)
    if outputs == 1:
        # All taps in one product; with one column each, products would not pay. Time comes first here, too: with the
        # operands the other way round, MKL's sums depend on the number of threads.
        by_tap = joined.new_empty(joined.shape[0], joined.shape[1], len(shifts))
        for row, out in zip(joined, by_tap, strict=True):
            torch.mm(row, weight[:, :, 0].T, out=out)
        taps = [by_tap[:, shift : shift + frames, tap] for tap, shift in enumerate(shifts)]
        y = torch.stack(taps).sum(0)[..., None]
        if bias is not None:
            y = y.add_(bias)
    else:
        # The bias everywhere, a copy also of a single row: what products are added to.
        start = input.new_zeros(outputs) if bias is None else bias
        y = start.repeat(input.shape[0], frames, 1)
        for row, out in zip(joined, y, strict=True):
            for matrix, shift in zip(weight, shifts, strict=True):
                out.addmm_(row[shift : shift + frames], matrix)
    return y if residual is None else y.add_(residual)


def _joined(before: Tensor, x: Tensor, elu: bool) -> Tensor:
    """`before` and then x [B, T, C], or the ELU of both."""
    held = before.shape[1]
    if held == 0:
        return F.elu(x) if elu else x
    if not elu:
        return torch.cat([before, x], dim=1)
    joined = x.new_empty(x.shape[0], held + x.shape[1], x.shape[2])
    torch.ops.aten.elu.out(before, out=joined[:, :held])
    torch.ops.aten.elu.out(x, out=joined[:, held:])
    return joined


def lstm_layer(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.lstm_layer`."""
    check_lstm_layer_inputs(gates, weight, hidden, cell)
    # [H / 16, H, 4, 16] -> [H, 4 * H]
    matrix = weight.permute(1, 2, 0, 3).flatten(1)
    out = gates.new_empty(*gates.shape[:2], hidden.shape[1])
    for step in range(gates.shape[1]):
        enter, forget, new, leave = torch.addmm(gates[:, step], hidden, matrix).chunk(4, dim=1)
        cell.mul_(forget.sigmoid()).add_(enter.sigmoid() * new.tanh())
        hidden.copy_(leave.sigmoid() * cell.tanh())
        out[:, step] = hidden
    return out


def float32_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.float32_attention`."""
    check_float32_attention_inputs(query, key, value, causal)
    return attend(query.transpose(1, 2), key, value, causal).transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attend with query [B, H, T, D] to key and value [B, H, S, D]; the last query sees every key.

    Without a mask it is what flash attention takes.
    """
    tokens, keys = query.shape[2], key.shape[2]
    mask = None
    if causal and 1 < tokens < keys:
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(diagonal=keys - tokens)
    whole = causal and tokens == keys > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole)


def int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.int16_linear`: 16-bit weights take the device's 16-bit product."""
    check_int16_linear_inputs(input, weight, scales, bias)
    if scales is not None:
        weight = expanded(weight, scales)
    product = F.linear(input.to(weight.dtype), weight).float()
    if bias is not None:
        product = product + bias
    return F.gelu(product) if gelu else product


def expanded(weight: Tensor, scales: Tensor) -> Tensor:
    """Return what int8 weights mean: float32 on the CPU, else float16, for tensor cores."""
    meant = weight.float() * scales.repeat_interleave(INT8_GROUP, dim=1)[:, : weight.shape[1]]
    return meant if op_checks.on_host(weight) else meant.half()


def int8_linear(
    input: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.int8_linear`."""
    check_int8_linear_inputs(input, weight, scales, bias)
    return int16_linear(_rounded_to_int8(input), weight, scales, bias, gelu)


def _rounded_to_int8(x: Tensor) -> Tensor:
    """Round x [M, K] float32 to 255 levels between -max and max of each group of 64 numbers along a row."""
    groups = F.pad(x, (0, -x.shape[1] % INT8_GROUP)).unflatten(1, (-1, INT8_GROUP))
    largest = groups.abs().amax(2, keepdim=True)
    largest = largest.masked_fill(largest < 1e-36, 0.0)
    levels = (groups * (127 / largest)).round_().masked_fill_(largest == 0, 0.0)
    return (levels * (largest / 127)).flatten(1)[:, : x.shape[1]]


def int16_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.int16_attention`, in the keys' dtype; 16 bits beyond the CPU."""
    check_int16_attention_inputs(query, key, value, causal)
    if key.dtype == torch.float32 and not op_checks.on_host(key):
        key, value = key.half(), value.half()
    attended = attend(query.transpose(1, 2).to(key.dtype), key, value, causal)
    return attended.transpose(1, 2).flatten(2).float()


def decode_step(ids: Tensor, weights: StepWeights, cache: StepCache) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.decode_step`."""
    check_decode_inputs(ids, weights, cache)
    token_table, positions, layers, eps, head, head_scales, num_heads = weights
    key_cache, value_cache, length = cache
    (batch, tokens), in_bytes = ids.shape, key_cache.dtype == torch.int8
    places = Places(length, tokens, key_cache.shape[3])
    where = places.where
    fits = (ids >= 0) & (ids < len(token_table)) & (where >= 0) & (where < min(key_cache.shape[3], len(positions)))
    hidden = F.embedding(ids.clamp(0, len(token_table) - 1), token_table).float()
    hidden = hidden + F.embedding(where.clamp(0, len(positions) - 1), positions).float()
    hidden = hidden.masked_fill(~fits[..., None], math.nan).flatten(0, 1)
    for i in range(len(key_cache)):
        layer = layers[16 * i : 16 * i + 16]
        packed = _product(_layer_norm(hidden, layer[0:2], eps[2 * i]), layer[2:5])
        packed = packed if in_bytes else packed.to(key_cache.dtype)
        query, key, value = packed.view(batch, tokens, 3, num_heads, hidden.shape[-1] // num_heads).unbind(2)
        if in_bytes:
            attended = attend_to_int8(query, key, value, key_cache[i], value_cache[i], length)
        elif op_checks.on_host(ids):
            attended = static_cache_attention(query, key, value, key_cache[i], value_cache[i], length)
        else:
            attended = attend_behind_mask(query, key, value, key_cache[i], value_cache[i], places)
        hidden = hidden + _product(attended.flatten(0, 1).float(), layer[5:8])
        inner = _product(_layer_norm(hidden, layer[8:10], eps[2 * i + 1]), layer[10:13], gelu=True)
        hidden = hidden + _product(inner, layer[13:16])
    logits = _product(_layer_norm(hidden, layers[-2:], eps[-1]), (head, None, head_scales))
    return logits.view(batch, tokens, len(head))


def _product(hidden: Tensor, linear: Sequence[Tensor | None], *, gelu: bool = False) -> Tensor:
    weight, bias, scales = linear
    assert weight is not None
    return int16_linear(hidden, weight, scales, bias, gelu)


def _layer_norm(hidden: Tensor, norm: Sequence[Tensor | None], eps: float) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], norm[0], norm[1], eps)


def sample(
    logits: Tensor,
    noise: Tensor | None,
    first_id: int,
    allowed: Tensor,
    min_eos_p: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    renormalize: bool = True,
) -> Tensor:
    """`fused_sample` without a look at the data: the id of a row that cannot be sampled is minus its status."""
    ids = torch.arange(first_id, first_id + logits.shape[1], dtype=torch.int64, device=logits.device)
    begin, end, eos = (column[:, None] for column in allowed.unbind(1))
    scores = logits.float().masked_fill(~((ids >= begin) & (ids < end) | (ids == eos)), NEG_INF)
    status = _status(scores)
    if min_eos_p is not None:
        scores = _prioritize_eos(scores, ids == eos, min_eos_p.float()[:, None])
    if noise is None:
        return torch.where(status > 0, -status, scores.argmax(dim=-1) + first_id)
    if temperature is not None:
        scores = scores / temperature.float()[:, None]
    status = torch.where(status > 0, status, _status(scores))
    if top_k is not None:
        scores = _keep_top_k(scores, top_k[:, None])
    if top_p is not None:
        scores = _keep_top_p(scores, top_p[:, None])
    if renormalize:
        scores = scores.log_softmax(dim=-1)
    noise = noise[:, first_id : first_id + scores.shape[-1]]
    winner = (scores.softmax(dim=-1) / noise).argmax(dim=-1)
    positive = noise.gather(1, winner[:, None]).flatten() > 0
    status = status.masked_fill((status == 0) & ~positive, BAD_NOISE)
    return torch.where(status > 0, -status, winner + first_id)


def _status(scores: Tensor) -> Tensor:
    """[N] int64: 0 for rows that can be sampled."""
    bad = (~(scores < math.inf)).any(dim=-1)
    masked = (scores == NEG_INF).all(dim=-1)
    return (masked * ALL_MASKED).masked_fill(bad, NOT_FINITE)


def _checked(op: str, ids: Tensor) -> Tensor:
    if not op_checks.is_capturing(ids):
        raise_bad_rows(op, ids)
    return ids


def _prioritize_eos(scores: Tensor, is_eos: Tensor, min_eos_p: Tensor) -> Tensor:
    """`scores` [N, L] without anything but the EOS (`is_eos` [N or 1, L]) where it is likelier than `min_eos_p`."""
    likely = (scores.softmax(dim=-1) > min_eos_p) & is_eos & (min_eos_p > 0)
    return scores.masked_fill(likely.any(-1, keepdim=True) & ~is_eos, NEG_INF)


def _keep_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    ordered = torch.sort(scores, descending=True).values
    last = (top_k - 1).clamp(0, scores.shape[-1] - 1).expand(len(scores), 1)
    return scores.masked_fill((scores < ordered.gather(1, last)) & (top_k > 0), NEG_INF)


def _keep_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    # Stable, so that ties go by index on every device; Transformers relies on what torch.sort happens to do.
    ordered, order = torch.sort(scores, stable=True)
    remove = (ordered.softmax(dim=-1).cumsum(dim=-1) <= (1 - top_p).float()) & (top_p < 1)
    remove[:, -1] = False
    return scores.masked_fill(remove.scatter(1, order, remove), NEG_INF)
