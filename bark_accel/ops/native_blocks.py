"""The compiled ops on blocks of tokens, as prompts and the fine stage have them: products and attention."""

from __future__ import annotations

from torch import Tensor

from ._compiled import fake, op, require_one_device


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
    return op("float32_linear")(input, weight, bias, residual, gelu)


@fake("float32_linear")
def _fake_float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    require_one_device("float32_linear", input, weight, bias, residual)
    return input.new_empty(input.shape[0], weight.shape[0])


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
    return op("int16_linear")(input, weight, scales, bias, gelu)


@fake("int16_linear")
def _fake_int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    require_one_device("int16_linear", input, weight, scales, bias)
    return input.new_empty(input.shape[0], weight.shape[0])


def int8_linear(
    input: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """``F.linear`` of int8 weights and an input that is rounded to int8 as well.

    The input's integers have a scale for each group of 64 along K, as the weight's. A group's sum is exact in int32,
    and the same for every instruction set; groups are rescaled and added in float32, in order. Rounding normal data
    costs 6e-3 of the result's norm, as much as rounding the weight did. Meant for many rows: the weight is packed again
    in every call; no copy of it stays. A NaN or infinite input makes its row NaN.

    Parameters
    ----------
    input : Tensor [M, K], float32
        Unit stride in K, any row stride.
    weight : Tensor [N, K], int8
        Unit stride in K, any row stride.
    scales : Tensor [N, ceil(K / 64)], float32
        ``weight[n, k] * scales[n, k // 64]`` is meant.
    bias : Tensor [N], float32, optional
    gelu : bool
        Exact (erf) GELU of the result.

    Returns
    -------
    Tensor [M, N], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and K = 0.
    """
    return op("int8_linear")(input, weight, scales, bias, gelu)


@fake("int8_linear")
def _fake_int8_linear(
    input: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    require_one_device("int8_linear", input, weight, scales, bias)
    return input.new_empty(input.shape[0], weight.shape[0])


def pack_linear(weight: Tensor, scales: Tensor | None = None, int8_blocks: bool = False) -> Tensor:
    """Lay a weight out as the kernels read it, for :func:`packed_linear`.

    What is laid out depends on the CPU's instruction set; it is for this process alone. There is no fake.

    Parameters
    ----------
    weight, scales : Tensor
        As in :func:`int16_linear`; N is a multiple of 32.
    int8_blocks : bool
        For :func:`int8_linear`'s product, with an int8 weight; else for that of :func:`int16_linear`.

    Returns
    -------
    Tensor [panels, groups, rows, outputs of a panel], int32
        2 bytes a weight, with `int8_blocks` 1 byte where the CPU multiplies bytes, and 4 bytes a scale. Parts of it
        along its first dimension are parts of N, at multiples of the outputs of a panel.

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and `int8_blocks` without an int8 weight.
    """
    return op("pack_linear")(weight, scales, int8_blocks)


def packed_linear(input: Tensor, packed: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Compute what :func:`int16_linear` or :func:`int8_linear` computes, to the bit, without packing the weight.

    Parameters
    ----------
    input : Tensor [M, K], float32
        Unit stride in K, any row stride. K is that of the weight, and the packed weight has it by whole groups only: a
        K with as many groups is not told apart.
    packed : Tensor [panels, groups, rows, outputs of a panel], int32
        Of :func:`pack_linear` in this process, contiguous.
    bias : Tensor [N], float32, optional
    gelu : bool
        Exact (erf) GELU of the result.

    Returns
    -------
    Tensor [M, N], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit.
    """
    return op("packed_linear")(input, packed, bias, gelu)


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
    return op("float32_attention")(query, key, value, causal)


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
    return op("int16_attention")(query, key, value, causal)


@fake("float32_attention")
@fake("int16_attention")
def _fake_block_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    require_one_device("attention", query, key, value)
    batch, tokens, heads, head_dim = query.shape
    return query.new_empty(batch, tokens, heads * head_dim)
