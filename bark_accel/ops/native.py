"""The compiled ops (``backend="native"``).

:mod:`bark_accel.ops.reference` has the same functions in plain torch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library


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
    """Pick one token per row under Bark's token rules, in one pass over the logits.

    Equals, in this order, Transformers' ``SuppressTokensLogitsProcessor`` or
    ``AlternatingCodebooksLogitsProcessor``, ``BarkEosPrioritizerLogitsProcessor``,
    ``TemperatureLogitsWarper``, ``TopKLogitsWarper`` (ties at the k-th stay), ``TopPLogitsWarper`` (equal
    logits at the cut go by index; stock's sort leaves that open), ``renormalize_logits``, softmax, and
    ``torch.multinomial(p, 1)``, which is ``argmax(p / noise)``. Greedy stops after the EOS priority.

    The rules are tensors of one entry for all rows, or of one a row; :class:`bark_accel.sampling.SampleRules` makes
    them. On a CPU they are checked at every call; elsewhere that would wait for the device, and what lies outside of
    the logits counts as not allowed.

    Parameters
    ----------
    logits : Tensor [N, L], float32, float16 or bfloat16
        Scores of the ids ``first_id .. first_id + L - 1``; unit stride in L, any row stride.
    noise : Tensor [N, V], float32, or None
        Exponential noise indexed by id (``torch.empty(N, V).exponential_(generator=g)`` draws what
        ``torch.multinomial`` would); ``V >= first_id + L``. None: greedy, the first maximum.
    first_id : int
    allowed : Tensor [1 or N, 3], int64
        ``(begin, end, eos)``: allowed are the ids in ``[begin, end)`` and ``eos`` (-1: none).
    min_eos_p : Tensor [1 or N], float64, or None
        Take the EOS at once when its probability exceeds this; 0, or None, is off.
    temperature, top_k, top_p : Tensor [1 or N], float64, int64, float64, or None
        Used only with noise. A temperature of 1, ``top_k`` 0 and ``top_p`` 1.0, or None, are off.
    renormalize : bool
        Log-softmax before softmax, as ``renormalize_logits=True`` of Bark's semantic and coarse generation
        configs does (the fine stage does not). It changes roundings only.

    Returns
    -------
    Tensor [N], int64
        Token ids.

    Raises
    ------
    ValueError
        On shapes, dtypes, devices, strides or rules that do not fit; on NaN or +inf among the allowed
        logits; on a row whose allowed logits are all -inf.
    """
    return _op("fused_sample")(logits, noise, first_id, allowed, min_eos_p, temperature, top_k, top_p, renormalize)


def fused_multinomial(
    logits: Tensor,
    generator: torch.Generator | None,
    vocab_size: int,
    first_id: int,
    allowed: Tensor,
    min_eos_p: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    renormalize: bool = True,
) -> Tensor:
    """Pick one token per row as :func:`fused_sample` does, drawing the noise as ``torch.multinomial(p, 1)`` would.

    Token and generator state equal those of the noise ``torch.empty(N, vocab_size).exponential_(1)``. On a torch
    whose noise is known (a test at first use decides; ``_library.load().lazy_noise()`` tells) it is not computed in
    full: the generator advances past all entries, and the logarithm is taken only where it can decide. Rows with a
    generator of their own are calls of their own (schemas have no lists of generators; a call of its own costs a row
    some 5 us).

    Parameters
    ----------
    logits : Tensor [N, L], float32, float16 or bfloat16
        Scores of the ids ``first_id .. first_id + L - 1``; unit stride in L, any row stride.
    generator : torch.Generator of the logits' device, or None
        None: torch's default one. It is advanced by N * vocab_size entries, in rows that are refused as well.
    vocab_size : int
        Entries per row, at least ``first_id + L``.
    first_id, allowed, min_eos_p, temperature, top_k, top_p, renormalize
        As in :func:`fused_sample`.

    Returns
    -------
    Tensor [N], int64
        Token ids.

    Raises
    ------
    ValueError
        As :func:`fused_sample` does, on a ``vocab_size`` that is too small, and on a generator of another device.
    """
    return _op("fused_multinomial")(
        logits, generator, vocab_size, first_id, allowed, min_eos_p, temperature, top_k, top_p, renormalize
    )


def codebook_embedding_sum(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Sum the embeddings of the first ``len(tables)`` codebooks and the position embedding.

    Equals the input embedding of Transformers' ``BarkFineModel.forward``, without the lookups it throws away.

    Parameters
    ----------
    codes : Tensor [B, T, K], int32 or int64
        Any strides. Codebooks from ``len(tables)`` on are not read.
    tables : sequence of n <= K Tensors [V, C], float32, float16 or bfloat16
        All of one shape and dtype; unit stride in C.
    positions : Tensor [P, C], the tables' dtype
        ``P >= T``; unit stride in C.

    Returns
    -------
    Tensor [B, T, C], float32
        ``sum_i tables[i][codes[b, t, i]] + positions[t]``, accumulated in fp32.

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and on a code outside ``[0, V)``.
    """
    return _op("codebook_embedding_sum")(codes, tables, positions)


def static_cache_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    """Append keys and values to a fixed cache in place, and attend causally over what is valid.

    Equals the cache update and attention of Transformers' ``BarkSelfAttention`` up to its output projection.
    Scores, softmax and accumulation are fp32 whatever the dtype. ``length`` is not changed. A NaN or infinite
    value row of a block may reach earlier queries of that block, as ``0 * nan`` does in stock.

    Parameters
    ----------
    query, key, value : Tensor [B, T, H, D], float32, float16 or bfloat16
        Unit stride in D; other strides are free (views of a packed [B, T, 3 * H * D] projection do).
    key_cache, value_cache : Tensor [B, H, capacity, D], the query's dtype
        Unit stride in D; may be slices of larger buffers. Positions ``length .. length + T - 1`` are
        overwritten.
    length : Tensor [B], int64
        Valid entries of each row before this call; query t of a row sees positions ``0 .. length + t``. -1: an idle
        row, of which nothing is read or written; its result is NaN.

    Returns
    -------
    Tensor [B, T, H * D], the query's dtype

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and when ``length + T`` exceeds the capacity.
    """
    return _op("static_cache_attention")(query, key, value, key_cache, value_cache, length)


def float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """``F.linear`` in float32, with what follows it.

    The relative error is about 3e-7 for normal data, that of torch's own products. Sums go over groups of 256 along K,
    each in the order of K, so no element depends on the number of threads or on the other rows of the call. The weight
    is packed anew in every call; no copy of it stays. A NaN or infinite input shows in its own row alone.

    Parameters
    ----------
    input : Tensor [M, K], float32
        Unit stride in K, any row stride.
    weight : Tensor [N, K], float32
        Unit stride in K, any row stride.
    bias : Tensor [N], float32, optional
    residual : Tensor [M, N], float32, optional
        Added last; unit stride in N, any row stride.
    gelu : bool
        Exact (erf) GELU of the product plus bias.

    Returns
    -------
    Tensor [M, N], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and K = 0.
    """
    return _op("float32_linear")(input, weight, bias, residual, gelu)


def float32_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention in float32, online over tiles of 96 keys.

    Equals ``scaled_dot_product_attention``; no query depends on the number of threads or on the other queries of the
    call, but a NaN or infinite value may reach causal queries before it in their block of 64.

    Parameters
    ----------
    query : Tensor [B, T, H, D], float32
        Unit stride in D, other strides are free.
    key, value : Tensor [B, H, S, D], float32
        Unit stride in D, other strides are free (a filled part of a cache does).
    causal : bool
        Query t sees keys ``0 .. S - T + t`` (the last query sees all), so ``S >= T``; else every key.

    Returns
    -------
    Tensor [B, T, H * D], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, on no keys, and on more causal queries than keys.
    """
    return _op("float32_attention")(query, key, value, causal)


def int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """``F.linear`` for weights of 16 bits or fewer, in integer arithmetic.

    Input and weight are scaled to int16 per row and group of 256 along K, multiplied and added in int32, and rescaled
    to float32. A group's scale bounds the Euclidean norm of its integers, so no sum can overflow (Cauchy-Schwarz).
    The relative error is about 1.4e-4 for normal data (rounding both sides to float16 gives 3.6e-4). The weight is
    converted while it is packed for the cache; no copy of it stays. Meant for many rows: the weight is read once per
    1024 rows, and packed again in every call. A NaN or infinite input makes its row NaN.

    Parameters
    ----------
    input : Tensor [M, K], float32
        Unit stride in K, any row stride.
    weight : Tensor [N, K], float32, float16, bfloat16 or int8
        Unit stride in K, any row stride.
    scales : Tensor [N, ceil(K / 64)], float32
        For an int8 weight only: ``weight[n, k] * scales[n, k // 64]`` is meant.
    bias : Tensor [N], float32, optional
    gelu : bool
        Exact (erf) GELU of the result.

    Returns
    -------
    Tensor [M, N], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, K = 0, and on scales without an int8 weight or the
        other way round.
    """
    return _op("int16_linear")(input, weight, scales, bias, gelu)


def int16_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention whose two products run in integer arithmetic, as in :func:`int16_linear`.

    Equals ``scaled_dot_product_attention`` with an error of about 2.5e-4 relative to the result's norm. Softmax is
    float32, online over groups of 256 keys. A NaN or infinite key makes every query that sees it NaN, a value every
    query that sees one of its group of 256 in that head dimension.

    Parameters
    ----------
    query : Tensor [B, T, H, D], float32
        Unit stride in D, other strides are free; D up to 256.
    key, value : Tensor [B, H, S, D], float32, float16 or bfloat16
        Of one dtype; unit stride in D, other strides are free (a filled part of a cache does).
    causal : bool
        Query t sees keys ``0 .. S - T + t`` (the last query sees all), so ``S >= T``; else every key.

    Returns
    -------
    Tensor [B, T, H * D], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, on no keys, and on more causal queries than keys.
    """
    return _op("int16_attention")(query, key, value, causal)


def decode_step(
    ids: Tensor,
    token_table: Tensor,
    positions: Tensor,
    weights: Sequence[Tensor | None],
    eps: Sequence[float],
    head: Tensor,
    head_scales: Tensor | None,
    num_heads: int,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
) -> Tensor:
    """Feed a few tokens to a whole causal transformer, and score what follows each of them.

    Equals Transformers' ``BarkCausalModel.forward`` on a cache: embedding plus position, and per layer LayerNorm, QKV,
    cache append, attention, output projection, LayerNorm, MLP with the exact GELU; then the final LayerNorm and the
    head. Every weight is read once for up to 16 tokens, by a team of ``torch.get_num_threads()`` threads. What a row
    gets does not depend, to the bit, on the rows beside it, on their lengths or on the number of threads. Sums,
    residual, LayerNorm and softmax are float32; beside int8 weights activations are rounded to int16 per row.

    Parameters
    ----------
    ids : Tensor [B, T], int64
        For many tokens of one row, a prompt, matrix products are faster.
    token_table, positions : Tensor [V, C] and [P, C], float32, float16 or bfloat16
        Token t of row b takes position ``length[b] + t``.
    weights : list of 16 tensors or None for each layer, then 2
        Layer: norm_1 (weight [C], bias), qkv (weight [3C, C], bias, scales), attention_out (weight [C, C], bias,
        scales), norm_2 (weight, bias), mlp_in (weight [N, C], bias, scales), mlp_out (weight [C, N], bias, scales);
        then the final norm (weight, bias). LayerNorms and biases are float32; weights float32, float16, bfloat16, or
        int8 with scales [out, ceil(in / 64)] float32 (``weight[n, k] * scales[n, k // 64]`` is meant).
    eps : list of 2 * layers + 1 floats
        Of norm_1 and norm_2 of each layer and of the final norm.
    head, head_scales : Tensor [N', C] as the weights, and its scales or None
        May be some rows of the model's head.
    num_heads : int
    key_cache, value_cache : Tensor [layers, B, H, capacity, D], float32, float16 or bfloat16
        Unit stride in D. Positions ``length .. length + T - 1`` of a row are overwritten.
    length : Tensor [B], int64
        Valid entries of each row before this call; it is not changed. -1: an idle row, which costs nothing; nothing of
        it is read or written, and its result is NaN.

    Returns
    -------
    Tensor [B, T, N'], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, ids outside the table, and when ``length + T`` exceeds
        the capacity or the positions.
    """
    return _op("decode_step")(
        ids,
        token_table,
        positions,
        weights,
        eps,
        head,
        head_scales,
        num_heads,
        key_cache,
        value_cache,
        length,
    )


# functools.cache lets in two threads that come first together, and some versions of torch refuse a second fake.
_registering = threading.Lock()


@functools.cache
def _op(name: str) -> Callable[..., Any]:
    with _registering:
        _library.load()
        _register_fakes()
    return getattr(torch.ops.bark_accel, name).default


def _require_one_device(op: str, *tensors: Tensor | None) -> None:
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise ValueError(f"{op}: expected all tensors on one device, got {' and '.join(devices)}")


def _fake_fused_sample(
    logits: Tensor, noise: Tensor | None, first_id: int, allowed: Tensor, *rules: Any, **more: Any
) -> Tensor:
    tensors = [t for t in (*rules, *more.values()) if isinstance(t, Tensor)]
    _require_one_device("fused_sample", logits, noise, allowed, *tensors)
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _fake_fused_multinomial(logits: Tensor, *rules: Any, **more: Any) -> Tensor:
    tensors = [t for t in (*rules, *more.values()) if isinstance(t, Tensor)]
    _require_one_device("fused_multinomial", logits, *tensors)
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _fake_codebook_embedding_sum(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    _require_one_device("codebook_embedding_sum", codes, *tables, positions)
    return positions.new_empty(codes.shape[0], codes.shape[1], positions.shape[1], dtype=torch.float32)


def _fake_static_cache_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    _require_one_device("static_cache_attention", query, key, value, key_cache, value_cache, length)
    batch, tokens, heads, head_dim = query.shape
    return query.new_empty(batch, tokens, heads * head_dim)


def _fake_float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    _require_one_device("float32_linear", input, weight, bias, residual)
    return input.new_empty(input.shape[0], weight.shape[0])


def _fake_int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    _require_one_device("int16_linear", input, weight, scales, bias)
    return input.new_empty(input.shape[0], weight.shape[0])


def _fake_block_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    _require_one_device("attention", query, key, value)
    batch, tokens, heads, head_dim = query.shape
    return query.new_empty(batch, tokens, heads * head_dim)


def _fake_decode_step(
    ids: Tensor,
    token_table: Tensor,
    positions: Tensor,
    weights: Sequence[Tensor | None],
    eps: Sequence[float],
    head: Tensor,
    head_scales: Tensor | None,
    num_heads: int,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
) -> Tensor:
    _require_one_device(
        "decode_step", ids, token_table, positions, *weights, head, head_scales, key_cache, value_cache, length
    )
    return positions.new_empty(*ids.shape, head.shape[0], dtype=torch.float32)


@functools.cache
def _register_fakes() -> None:
    torch.library.register_fake("bark_accel::decode_step", _fake_decode_step)
    torch.library.register_fake("bark_accel::fused_sample", _fake_fused_sample)
    torch.library.register_fake("bark_accel::fused_multinomial", _fake_fused_multinomial)
    torch.library.register_fake("bark_accel::codebook_embedding_sum", _fake_codebook_embedding_sum)
    torch.library.register_fake("bark_accel::static_cache_attention", _fake_static_cache_attention)
    torch.library.register_fake("bark_accel::float32_linear", _fake_float32_linear)
    torch.library.register_fake("bark_accel::float32_attention", _fake_block_attention)
    torch.library.register_fake("bark_accel::int16_linear", _fake_int16_linear)
    torch.library.register_fake("bark_accel::int16_attention", _fake_block_attention)
