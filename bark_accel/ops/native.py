"""The compiled ops (``backend="native"``).

:mod:`bark_accel.ops.reference` has the same functions in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import multinomial
from ._compiled import fake, op, require_one_device
from .interface import StepCache, StepWeights
from .native_blocks import float32_attention as float32_attention
from .native_blocks import float32_linear as float32_linear
from .native_blocks import int8_linear as int8_linear
from .native_blocks import int16_attention as int16_attention
from .native_blocks import int16_linear as int16_linear
from .native_blocks import pack_linear as pack_linear
from .native_blocks import packed_linear as packed_linear
from .native_codec import float32_conv as float32_conv
from .native_codec import lstm_layer as lstm_layer


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
    min_eos_p : Tensor [1 or N], float64 (on mps, in `backend="torch"`, float32), or None
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
    return op("fused_sample")(logits, noise, first_id, allowed, min_eos_p, temperature, top_k, top_p, renormalize)


@fake("fused_sample.unchecked")
@fake("fused_sample")
def _fake_fused_sample(
    logits: Tensor, noise: Tensor | None, first_id: int, allowed: Tensor, *rules: Any, **more: Any
) -> Tensor:
    tensors = [t for t in (*rules, *more.values()) if isinstance(t, Tensor)]
    require_one_device("fused_sample", logits, noise, allowed, *tensors)
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


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
    """Pick one token per row as :func:`fused_sample` does, drawing the noise as ``torch.multinomial(p, 1)`` would.

    Token and generator state equal those of the noise ``torch.empty(N, vocab_size).exponential_(1)``. On a torch
    whose noise is known (a test at first use decides; ``multinomial.is_lazy()`` tells) it is not computed in
    full: the generator advances past all entries, and the logarithm is taken only where it can decide.

    Parameters
    ----------
    logits : Tensor [N, L], float32, float16 or bfloat16
        Scores of the ids ``first_id .. first_id + L - 1``; unit stride in L, any row stride.
    generator : torch.Generator of the logits' device, a sequence of N that differ, or None
        None: torch's default one. It is advanced by N * vocab_size entries, in rows that are refused as well. Of
        several, each draws for one row what it would draw for that row alone, and none is advanced if a row is
        refused; not for tensors without data.
    vocab_size : int
        Entries per row, at least ``first_id + L``.
    first_id, allowed, min_eos_p, temperature, top_k, top_p, renormalize
        As in :func:`fused_sample`.
    checked : bool
        False, with several generators and elsewhere than on a CPU: do not wait for the device. The id of a row that
        cannot be sampled is minus its status then; :func:`bark_accel.ops.sample_checks.raise_bad_rows` raises for it.

    Returns
    -------
    Tensor [N], int64
        Token ids.

    Raises
    ------
    ValueError
        As :func:`fused_sample` does, on a ``vocab_size`` that is too small, and on a generator of another device or
        for another number of rows.
    """
    rules = (allowed, min_eos_p, temperature, top_k, top_p, renormalize)
    if isinstance(generator, Sequence):  # schemas have no lists of generators
        return multinomial.draw_each(logits, generator, vocab_size, first_id, *rules, checked=checked)
    # Tensors without data, and classes that look at every op, have to see this one.
    draw = multinomial.draw if type(logits) is Tensor else op("fused_multinomial")
    return draw(logits, generator, vocab_size, first_id, *rules)


@fake("fused_multinomial")
@fake("fused_multinomial.state")
@fake("fused_multinomial.states")
def _fake_fused_multinomial(logits: Tensor, *rules: Any, **more: Any) -> Tensor:
    tensors = [t for t in (*rules, *more.values()) if isinstance(t, Tensor)]
    require_one_device("fused_multinomial", logits, *tensors)
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


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
    return op("codebook_embedding_sum")(codes, tables, positions)


@fake("codebook_embedding_sum")
def _fake_codebook_embedding_sum(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    require_one_device("codebook_embedding_sum", codes, *tables, positions)
    return positions.new_empty(codes.shape[0], codes.shape[1], positions.shape[1], dtype=torch.float32)


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
    return op("static_cache_attention")(query, key, value, key_cache, value_cache, length)


@fake("static_cache_attention")
def _fake_static_cache_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    require_one_device("static_cache_attention", query, key, value, key_cache, value_cache, length)
    batch, tokens, heads, head_dim = query.shape
    return query.new_empty(batch, tokens, heads * head_dim)


def decode_step(ids: Tensor, weights: StepWeights, cache: StepCache) -> Tensor:
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
    weights : StepWeights
    cache : StepCache
        Positions ``length .. length + T - 1`` of a row are overwritten; the lengths are not changed. Each key and
        value of a head is rounded to an int8 cache with a scale of its own; a NaN or infinite one makes the result NaN.

    Returns
    -------
    Tensor [B, T, N'], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, ids outside the table, and when ``length + T`` exceeds
        the capacity or the positions.
    """
    return op("decode_step")(ids, *weights, *cache)


@fake("decode_step")
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
    require_one_device(
        "decode_step", ids, token_table, positions, *weights, head, head_scales, key_cache, value_cache, length
    )
    return positions.new_empty(*ids.shape, head.shape[0], dtype=torch.float32)
