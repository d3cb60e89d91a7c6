"""Fixtures and sample inputs shared by the op tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bark_accel.ops import _library
from bark_accel.ops.int8_entries import to_entries
from bark_accel.transformer.precision import quantize
from bark_accel.transformer.weights import Linear


@pytest.fixture(params=_library.load().available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set of this CPU."""
    library = _library.load()
    before = library.isa()
    library.set_isa(request.param)
    yield request.param
    library.set_isa(before)


@pytest.fixture
def use_threads() -> Iterator[Callable[[int], None]]:
    """Has the following steps share exactly so many threads."""
    before, library = torch.get_num_threads(), _library.load()

    def use(threads: int) -> None:
        torch.set_num_threads(threads)
        library.set_step_threads(fixed=threads)

    yield use
    torch.set_num_threads(before)
    library.set_step_threads()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def rows_of(length: int | list[int], batch: int) -> Tensor:
    return torch.tensor([length] * batch if isinstance(length, int) else length, dtype=torch.int64)


def longest(lengths: Tensor) -> int:
    return max([0, *lengths.tolist()])


def attention_inputs(
    batch: int, tokens: int, heads: int, head_dim: int, length: int | list[int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Views of one packed projection, and caches that are batch slices of larger buffers; a length for all or each."""
    lengths = rows_of(length, batch)
    packed = torch.randn(batch, tokens, 3 * heads * head_dim).to(dtype)
    query, key, value = packed.view(batch, tokens, 3, heads, head_dim).unbind(2)
    keys, values = torch.randn(2, batch + 2, heads, longest(lengths) + tokens + 3, head_dim).to(dtype).unbind(0)
    return query, key, value, keys[1 : batch + 1], values[1 : batch + 1], lengths


def embedding_inputs(
    batch: int, frames: int, codebooks: int, tables: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor], Tensor]:
    codes = torch.randint(0, 37, (batch, codebooks, frames)).transpose(1, 2)
    return (
        codes,
        [torch.randn(37, width).to(dtype) for _ in range(tables)],
        torch.randn(frames + 2, width).to(dtype),
    )


def float32_linear_inputs(
    rows: int, outputs: int, inner: int, *, bias: bool = False, residual: bool = False, gelu: bool = False
) -> tuple[Tensor | bool | None, ...]:
    """Slices of wider matrices; the products have variance 1."""
    x, weight = torch.randn(rows, inner + 3)[:, :inner], torch.randn(outputs, inner + 5)[:, :inner] / inner**0.5
    before = torch.randn(rows, outputs + 2)[:, :outputs] if residual else None
    return x, weight, torch.randn(outputs) if bias else None, before, gelu


def float32_conv_inputs(
    batch: int,
    frames: int,
    channels: int,
    taps: int,
    outputs: int,
    *,
    bias: bool = False,
    residual: bool = False,
    dilation: int = 1,
    elu: bool = False,
) -> tuple[Tensor | int | bool | None, ...]:
    """Slices of wider tensors; the sums have variance 1."""
    left = (taps - 1) * dilation
    x, before = torch.randn(batch, frames, channels + 3), torch.randn(batch, left + 2, channels)
    added = torch.randn(batch, frames, outputs + 2)[..., :outputs] if residual else None
    weight = torch.randn(taps, channels, outputs) / (taps * channels) ** 0.5
    offset = torch.randn(outputs) if bias else None
    return x[..., :channels], before[:, 1 : left + 1], weight, offset, added, dilation, elu


def lstm_layer_inputs(batch: int, steps: int, size: int) -> tuple[Tensor, ...]:
    """Gates, weights and a state as in the middle of an utterance."""
    weight = torch.randn(size // 16, size, 4, 16) / size**0.5
    return torch.randn(batch, steps, 4 * size), weight, torch.rand(batch, size) - 0.5, torch.randn(batch, size)


def int16_linear_inputs(
    rows: int, outputs: int, inner: int, dtype: torch.dtype = torch.float32, *, bias: bool = False, gelu: bool = False
) -> tuple[Tensor | bool | None, ...]:
    """Slices of wider matrices; an int8 weight with its scales."""
    x = torch.randn(rows, inner + 3)[:, :inner]
    offset = torch.randn(outputs) if bias else None
    if dtype != torch.int8:
        return x, torch.randn(outputs, inner + 5).to(dtype)[:, :inner], None, offset, gelu
    weight = torch.randint(-127, 128, (outputs, inner + 5), dtype=torch.int8)[:, :inner]
    return x, weight, torch.rand(outputs, -(-inner // 64)) / 64, offset, gelu


def int16_attention_inputs(
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    keys: int,
    dtype: torch.dtype = torch.float32,
    *,
    causal: bool = False,
) -> tuple[Tensor | bool, ...]:
    """Queries as a view of a packed projection, keys and values as the filled part of larger caches."""
    query = torch.randn(batch, tokens, 2, heads, head_dim)[:, :, 1]
    cached = torch.randn(2, batch, heads, keys + 3, head_dim).to(dtype)[:, :, :, :keys]
    return query, cached[0], cached[1], causal


def matrix(outputs: int, inputs: int, dtype: torch.dtype = torch.float32, *, bias: bool = False) -> list[Tensor | None]:
    """Weight, bias and scales: rows of a wider matrix, which keep the variance of what they are multiplied with."""
    wide = torch.randn(outputs, inputs + 3)[:, :inputs] / inputs**0.5
    offset = torch.randn(outputs) / 4 if bias else None
    if dtype == torch.int8:
        narrow = quantize(Linear(wide, offset))
        return [narrow.weight, narrow.bias, narrow.scales]
    return [wide if dtype == torch.float32 else wide.to(dtype), offset, None]


def norm(width: int, *, bias: bool = False) -> list[Tensor | None]:
    return [1 + torch.randn(width) / 4, torch.randn(width) / 4 if bias else None]


def decode_inputs(
    batch: int,
    tokens: int,
    width: int,
    heads: int,
    length: int | list[int],
    dtype: torch.dtype = torch.float32,
    *,
    cache: torch.dtype = torch.float32,
    table: torch.dtype = torch.float32,
    layers: int = 2,
    inner: int | None = None,
    outputs: int = 19,
    bias: bool = False,
    room: int = 3,
) -> tuple[Any, ...]:
    """Transposed ids; caches that are slices of larger buffers and have `room` left after this step."""
    ids = torch.randint(0, 37, (tokens, batch)).t()
    inner = 4 * width if inner is None else inner
    weights: list[Tensor | None] = []
    for _ in range(layers):
        weights += [*norm(width, bias=bias), *matrix(3 * width, width, dtype, bias=bias)]
        weights += matrix(width, width, dtype, bias=bias)
        weights += [*norm(width, bias=bias), *matrix(inner, width, dtype, bias=bias)]
        weights += matrix(width, inner, dtype, bias=bias)
    head, _, head_scales = matrix(outputs, width, dtype)
    lengths = rows_of(length, batch)
    capacity = longest(lengths) + tokens + room
    buffers = to_entries(torch.randn(2, layers + 1, batch + 2, heads, capacity + 2, width // heads), cache)
    keys, values = buffers[:, 1:, 1 : batch + 1, :, 1 : capacity + 1].unbind(0)
    return (
        ids,
        torch.randn(37, width + 2)[:, :width].to(table),
        torch.randn(capacity, width).to(table),
        [*weights, *norm(width, bias=bias)],
        [1e-5 * (i + 1) for i in range(2 * layers + 1)],
        head,
        head_scales,
        heads,
        keys,
        values,
        lengths,
    )


def rules(
    first_id: int,
    begin: int,
    end: int,
    eos: int = -1,
    min_eos_p: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    renormalize: bool = True,
) -> tuple[Any, ...]:
    """What the samplers take beside logits and noise, for all rows alike; every option given, off or not."""
    numbers = [torch.tensor([x], dtype=torch.float64) for x in (min_eos_p, temperature, top_p)]
    allowed, kept = torch.tensor([[begin, end, eos]]), torch.tensor([top_k])
    return first_id, allowed, numbers[0], numbers[1], kept, numbers[2], renormalize


def exponential(*shape: int) -> Tensor:
    return torch.empty(*shape).exponential_()


OP_SAMPLES = {
    "fused_sample": lambda: [
        (torch.randn(2, 40), None, *rules(0, 0, 40)),
        (torch.randn(2, 40), None, 0, torch.tensor([[0, 40, -1]])),
        (torch.randn(3, 40), exponential(3, 50), *rules(10, 12, 40, 49, 0.1, 0.7, 5, 0.9, False)),
        (torch.randn(1, 80)[:, :40].half(), exponential(1, 40), *rules(0, 3, 30, 35, 0.0, 0.7, 50)),
    ],
    "fused_multinomial": lambda: [  # top-k 1 and the default generator: the same token in every run of a check
        (torch.randn(2, 40), None, 40, *rules(0, 0, 40, top_k=1)),
        (torch.randn(3, 40), None, 60, *rules(10, 12, 40, 49, 0.1, 0.7, 1, 0.9, False)),
    ],
    "codebook_embedding_sum": lambda: [
        embedding_inputs(2, 5, 8, 3, 24),
        embedding_inputs(1, 3, 2, 2, 7, torch.bfloat16),
    ],
    "static_cache_attention": lambda: [
        attention_inputs(2, 1, 3, 8, 5),
        attention_inputs(1, 9, 2, 16, 0, torch.float16),
        attention_inputs(3, 5, 2, 16, [9, 0, 4]),
    ],
    "decode_step": lambda: [
        decode_inputs(1, 1, 32, 2, 0),
        decode_inputs(3, 2, 20, 2, 5, torch.bfloat16, table=torch.float16, bias=True),
        decode_inputs(2, 1, 72, 3, 4, torch.int8, cache=torch.float16),
        decode_inputs(3, 2, 24, 2, [7, 0, 3]),
    ],
    "float32_linear": lambda: [
        float32_linear_inputs(5, 7, 24),
        float32_linear_inputs(3, 40, 270, bias=True, gelu=True),
        float32_linear_inputs(20, 33, 9, bias=True, residual=True),
    ],
    "float32_conv": lambda: [
        float32_conv_inputs(2, 5, 7, 3, 4),
        float32_conv_inputs(1, 30, 40, 7, 1, bias=True, elu=True),
        float32_conv_inputs(2, 20, 9, 2, 33, bias=True, residual=True, dilation=4, elu=True),
    ],
    "lstm_layer": lambda: [lstm_layer_inputs(1, 3, 16), lstm_layer_inputs(5, 2, 48)],
    "float32_attention": lambda: [
        int16_attention_inputs(2, 5, 3, 8, 9),
        int16_attention_inputs(1, 4, 2, 16, 6, causal=True),
    ],
    "int16_linear": lambda: [
        int16_linear_inputs(5, 7, 24),
        int16_linear_inputs(3, 40, 130, torch.int8, bias=True, gelu=True),
    ],
    "int8_linear": lambda: [
        int16_linear_inputs(5, 7, 24, torch.int8),
        int16_linear_inputs(3, 40, 130, torch.int8, bias=True, gelu=True),
    ],
    "int16_attention": lambda: [
        int16_attention_inputs(2, 5, 3, 8, 9),
        int16_attention_inputs(1, 4, 2, 16, 6, torch.float16, causal=True),
    ],
}
"""Positional arguments for every registered op; a schema without samples fails test_registry.py."""


APPROXIMATE = {"decode_step": 2e-2, "int16_linear": 5e-3, "int16_attention": 2e-3}
"""Ops that differ from their references by more than float32 rounding: absolute tolerance on the samples."""
