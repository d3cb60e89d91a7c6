"""The calls by which a device's ops are compared: small inputs of every shape class and dtype, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import INT8_GROUP
from .interface import StepCache, StepWeights

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Largest difference, relative to the largest expected value, where the result goes through numbers of that dtype.
TOLERANCES = {torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# What torch's own attention may round a float32 product to on a GPU (TF32).
LOOSE = 5e-3


@dataclass(frozen=True)
class Case:
    """One call of an op.

    `arguments` are on the CPU, `written` the indices of those that the op writes to. `tolerance` 0 asks for equality.
    Where `refused`, the op has to raise `ValueError` or, where it cannot look at its input, to give NaN.
    """

    op: str
    label: str
    arguments: tuple[Any, ...]
    tolerance: float = 0.0
    written: tuple[int, ...] = ()
    refused: bool = False


class Inputs:
    """Draws inputs, the same ones every time."""

    def __init__(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")
        return drawn if dtype == torch.float32 else drawn.to(dtype)

    def below(self, limit: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(limit, shape, generator=self._generator, dtype=dtype, device="cpu")

    def exponential(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu").exponential_(generator=self._generator)


def cases() -> Iterator[Case]:
    """Every call that is compared."""
    inputs = Inputs()
    for dtype in FLOATS:
        yield from _sampling(inputs, dtype)
        yield from _embedding_sums(inputs, dtype)
        yield from _attention(inputs, dtype)
    yield from _decode_steps(inputs)


# first_id, allowed_begin, allowed_end, eos_id, min_eos_p, temperature, top_k, top_p, renormalize
RULES = {
    "top-k, end of speech after the range": (0, 0, 1000, 1000, 0.0, 0.7, 50, 1.0, True),
    "top-p, end of speech at once": (0, 0, 1000, 1000, 0.05, 1.0, 0, 0.9, True),
    "no cut": (1000, 1000, 1600, -1, 0.0, 0.6, 0, 1.0, False),
    "both cuts, end of speech before the range": (7, 30, 300, 10, 0.1, 1.3, 5, 0.5, False),
}
ROWS = 8


def _tensors(first: int, begin: int, end: int, eos: int, *options: Any) -> tuple[Any, ...]:
    """One rule for all rows, as the samplers take it."""
    min_eos_p, temperature, top_k, top_p, renormalize = options
    allowed = torch.tensor([[begin, end, eos]], dtype=torch.int64, device="cpu")
    kept = torch.tensor([top_k], dtype=torch.int64, device="cpu")
    p, t, mass = (torch.tensor([x], dtype=torch.float64, device="cpu") for x in (min_eos_p, temperature, top_p))
    return first, allowed, p, t, kept, mass, renormalize


def _sampling(inputs: Inputs, dtype: torch.dtype) -> Iterator[Case]:
    for name, rules in RULES.items():
        first, columns = rules[0], max(rules[2], rules[3] + 1) - rules[0]
        logits = 2 * inputs.normal(ROWS, columns + 3, dtype=dtype)[:, :columns]
        if rules[3] >= 0:
            logits[::4, rules[3] - first] = 9
        noise = inputs.exponential(ROWS, first + columns + 5)
        label = f"{_name(dtype)}, {name}"
        given = _tensors(*rules)
        yield Case("fused_sample", f"{label}, greedy", (logits, None, *given))
        yield Case("fused_sample", label, (logits, noise, *given))
        yield Case("fused_multinomial", label, (logits, len(name), first + columns + 5, *given))
        for bad in (torch.nan, -torch.inf):
            wrong = logits.clone()
            wrong[3] = bad
            yield Case("fused_sample", f"{label}, a row of {bad}", (wrong, noise, *given), refused=True)


def _embedding_sums(inputs: Inputs, dtype: torch.dtype) -> Iterator[Case]:
    tables, positions = [*inputs.normal(3, 50, 202, dtype=dtype)], inputs.normal(9, 203, dtype=dtype)[:, :202]
    for ids in (torch.int64, torch.int32):
        codes = inputs.below(50, 2, 4, 7, dtype=ids).transpose(1, 2)
        label = f"{_name(dtype)}, codes of {_name(ids)}"
        yield Case("codebook_embedding_sum", label, (codes, tables, positions), TOLERANCES[torch.float32])
        wrong = codes[:1, :1].clone()
        wrong[0, 0, 1] = 50
        yield Case("codebook_embedding_sum", f"{label}, one too large", (wrong, tables, positions), refused=True)


# batch, tokens, heads, head size, length, capacity: one share of the cache and several, blocks that torch attends
ATTENTION = [
    *((1, 1, 2, 64, 0, 24), (2, 1, 2, 64, 299, 300), (1, 8, 2, 64, 280, 300), (2, 3, 2, 10, 5, 40)),
    *((1, 20, 2, 64, 0, 24), (1, 20, 2, 64, 4, 24)),
]


def _attention(inputs: Inputs, dtype: torch.dtype) -> Iterator[Case]:
    for batch, tokens, heads, size, length, capacity in ATTENTION:
        query, key, value = inputs.normal(batch, tokens, 3, heads, size, dtype=dtype).unbind(2)
        caches = (_cache(inputs, (batch, heads, capacity, size), length, dtype) for _ in range(2))
        label = f"{_name(dtype)}, {batch} x {tokens} tokens after {length}, heads of {size}"
        tolerance = max(TOLERANCES[dtype], LOOSE if tokens > 16 else 0)
        arguments = (query, key, value, *caches, _lengths(batch, length))
        yield Case("static_cache_attention", label, arguments, tolerance, written=(3, 4))


def _cache(inputs: Inputs, shape: tuple[int, ...], length: int, dtype: torch.dtype) -> Tensor:
    """A slice of a larger one, NaN from `length` on: nothing there may be read."""
    *before, batch, heads, capacity, size = shape
    cache = inputs.normal(*before, batch + 1, heads, capacity, size, dtype=dtype)
    cache[..., length:, :] = torch.nan
    return cache[..., :batch, :, :, :]


def _lengths(batch: int, length: int) -> Tensor:
    """One for each row; all rows but the first hold less where they can."""
    return torch.tensor([max(0, length - row) for row in range(batch)], dtype=torch.int64, device="cpu")


# Of matrices, tables and cache.
DECODE_DTYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.int8, torch.float32, torch.float16),
    (torch.float16, torch.float32, torch.float16),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.int8, torch.float16, torch.float16),
]
# batch, tokens, width, length, capacity: each number of rows that the matrix products have a kernel for, and odd sizes
DECODE_SHAPES = [
    *((1, 1, 128, 0, 40), (2, 1, 128, 299, 300), (3, 1, 128, 30, 40), (1, 8, 128, 290, 300), (12, 1, 128, 5, 40)),
    (2, 2, 36, 7, 40),
]


def _decode_steps(inputs: Inputs) -> Iterator[Case]:
    for i, dtypes in enumerate(DECODE_DTYPES):
        for shape in DECODE_SHAPES[: 2 if i > 3 else None]:
            yield decode_case(inputs, dtypes, shape)
    for fill, what in ((40, "a full cache"), (0, "an id too large")):
        case = decode_case(inputs, DECODE_DTYPES[0], (1, 1, 128, fill, 40))
        if fill == 0:
            case.arguments[0].fill_(50)
        yield Case(case.op, what, case.arguments, refused=True)


def decode_case(inputs: Inputs, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> Case:
    """A step of two layers with two heads."""
    (matrices, tables, cached), (batch, tokens, width, length, capacity) = dtypes, shape
    inner, has_bias = 5 * width, batch % 2 == 0

    def linear(outputs: int, depth: int) -> list[Tensor | None]:
        bias = inputs.normal(outputs) if has_bias else None
        weight = inputs.normal(outputs, depth) / depth**0.5
        if matrices != torch.int8:
            return [weight.to(matrices), bias, None]
        scales = inputs.exponential(outputs, -(-depth // INT8_GROUP)) / (127 * depth**0.5)
        return [(inputs.below(255, outputs, depth) - 127).to(torch.int8), bias, scales]

    def norm() -> list[Tensor | None]:
        return [1 + inputs.normal(width) / 4, inputs.normal(width) / 4 if has_bias else None]

    weights: list[Tensor | None] = []
    for _ in range(2):
        weights += [*norm(), *linear(3 * width, width), *linear(width, width)]
        weights += [*norm(), *linear(inner, width), *linear(width, inner)]
    head, _, scales = linear(70, width)
    assert head is not None
    keys, values = (_cache(inputs, (2, batch, 2, capacity, width // 2), length, cached) for _ in range(2))
    ids = inputs.below(50, tokens, batch).t()
    step = StepWeights(
        token_table=inputs.normal(50, width, dtype=tables),
        positions=inputs.normal(capacity + 2, width, dtype=tables),
        layers=[*weights, *norm()],
        eps=[0.05 * (i + 1) for i in range(5)],
        head=head,
        head_scales=scales,
        num_heads=2,
    )
    arguments = (ids, step, StepCache(keys, values, _lengths(batch, length)))
    label = f"{_name(matrices)} weights, {_name(tables)} tables, {batch} x {tokens} tokens of width {width}"
    return Case("decode_step", label, arguments, TOLERANCES[cached], written=(2,))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
