"""int8_linear: the same integers in every instruction set, and how far rounding the input leaves it from fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import _library
from bark_accel.ops import native as ops

from .conftest import int16_linear_inputs

SHAPES = [(1, 1, 1), (14, 32, 64), (15, 33, 65), (29, 70, 512), (100, 16, 900), (7, 300, 31)]


def int8_inputs(rows: int, outputs: int, inner: int, *, bias: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return int16_linear_inputs(rows, outputs, inner, torch.int8, bias=bias)[:4]  # type: ignore[return-value]


def integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [M, K] and scales [M, groups] of the definition, rounded as float32 rounds."""
    groups = F.pad(x, (0, -x.shape[1] % 64)).unflatten(1, (-1, 64))
    largest = groups.abs().amax(2)
    whole = (groups * (127 / largest)[..., None]).round().nan_to_num(0)
    return whole.flatten(1)[:, : x.shape[1]], largest / 127


def reference(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    whole, steps = integers(x)
    stepped = [s.double().repeat_interleave(64, 1)[:, : x.shape[1]] for s in (steps, scales)]
    return F.linear(whole.double() * stepped[0], weight.double() * stepped[1], None if bias is None else bias.double())


def exact_inputs(rows: int, outputs: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """Powers of two as scales, integers up to 127 in every group: every step of the product is exact."""
    x = torch.randint(-127, 128, (rows, inner)).float()
    x[:, ::64] = 127.0
    weight = torch.randint(-128, 128, (outputs, inner), dtype=torch.int8)
    return x / 16, weight, 2.0 ** torch.randint(-3, 1, (outputs, -(-inner // 64))).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_exact(isa: str, shape: tuple[int, int, int]) -> None:
    x, weight, scales = exact_inputs(*shape)
    got = ops.int8_linear(x, weight, scales)
    assert got.dtype == torch.float32 and torch.equal(got.double(), reference(x, weight, scales))


@pytest.mark.parametrize("activation", [127.0, -127.0])
@pytest.mark.parametrize("weight", [127, -127, -128])
@pytest.mark.parametrize("inner", [2, 64, 192])
def test_extreme_values_do_not_saturate(isa: str, activation: float, weight: int, inner: int) -> None:
    """Two products of the largest bytes leave int16: an instruction that adds them with saturation loses some."""
    x, w = torch.full((3, inner), activation), torch.full((5, inner), weight, dtype=torch.int8)
    got = ops.int8_linear(x, w, torch.ones(5, -(-inner // 64)))
    assert torch.equal(got, torch.full((3, 5), activation * weight * inner))


def test_ties_go_to_the_even_integer(isa: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    got = ops.int8_linear(x, torch.eye(8, dtype=torch.int8), torch.ones(8, 1))
    assert got.tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0]]


def test_instruction_sets_agree_to_the_bit() -> None:
    """With one group no float sum is left whose order or fusing could differ."""
    library, results = _library.load(), {}
    x, weight, scales, _ = int8_inputs(33, 50, 64)
    x *= torch.logspace(-20, 20, 33)[:, None]
    before = library.isa()
    try:
        for isa in library.available_isas():
            library.set_isa(isa)
            results[isa] = ops.int8_linear(x, weight, scales)
    finally:
        library.set_isa(before)
    assert all(torch.equal(result, results["generic"]) for result in results.values())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 600), st.booleans(), st.booleans())
def test_any_shape(rows: int, outputs: int, inner: int, bias: bool, gelu: bool) -> None:
    x, weight, scales, offset = int8_inputs(rows, outputs, inner, bias=bias)
    expected = reference(x, weight, scales, offset)
    scale = expected.abs().max().item() + 1
    torch.testing.assert_close(ops.int8_linear(x, weight, scales, offset).double(), expected, atol=2e-6 * scale, rtol=0)
    if gelu:
        got = ops.int8_linear(x, weight, scales, offset, gelu=True)
        torch.testing.assert_close(got.double(), F.gelu(expected), atol=3e-6 * scale, rtol=0)


def test_error_of_rounding_the_input(isa: str) -> None:
    """Of normal data 6e-3 of the result's norm, and not less: int16 would leave 1e-4."""
    x, weight, scales, _ = int8_inputs(60, 90, 768)
    exact = F.linear(x.double(), weight.double() * scales.double().repeat_interleave(64, 1))
    error = (ops.int8_linear(x, weight, scales).double() - exact).norm() / exact.norm()
    assert 5e-3 < error < 7e-3


def test_an_outlier_costs_its_own_group() -> None:
    x, weight, scales, _ = int8_inputs(4, 30, 192)
    clean = ops.int8_linear(x[:, :64].contiguous(), weight[:, :64], scales[:, :1].contiguous())
    x[:, 100] = 1e6
    keep = torch.zeros(192)
    keep[:64] = 1
    got = ops.int8_linear(x * keep, weight, scales)
    torch.testing.assert_close(got, clean, rtol=1e-6, atol=1e-5)
    others = (ops.int8_linear(x, weight, scales) - 1e6 * weight[:, 100].float() * scales[:, 1]).abs().max()
    assert 10 < others < 1e5  # the outlier's neighbours are below half a step


def test_scales_of_any_size(isa: str) -> None:
    x, weight, scales, _ = int8_inputs(20, 30, 512)
    expected = reference(x, weight, scales)
    for size in (1e-30, 1e30):
        got = ops.int8_linear(x * size, weight, scales).double() / size
        assert (got - expected).norm() < 1e-3 * expected.norm()
    assert not ops.int8_linear(x * 1e-38, weight, scales).any(), "too small for a scale counts as zero"
    assert not ops.int8_linear(x * 0, weight, scales).any()


def test_rows_are_independent(isa: str) -> None:
    x, weight, scales, _ = int8_inputs(40, 20, 300)
    whole = ops.int8_linear(x, weight, scales)
    assert torch.equal(ops.int8_linear(x[17:18], weight, scales)[0], whole[17])
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = x.clone()
        broken[5, 290] = bad
        got = ops.int8_linear(broken, weight, scales)
        keep = torch.arange(40) != 5
        assert got[5].isnan().all() and torch.equal(got[keep], whole[keep])


def test_more_rows_than_are_packed_at_once() -> None:
    x, weight, scales = exact_inputs(2100, 35, 3072)
    assert torch.equal(ops.int8_linear(x, weight, scales).double(), reference(x, weight, scales))


def test_empty() -> None:
    scales = torch.ones(5, 1)
    assert ops.int8_linear(torch.randn(0, 8), torch.ones(5, 8).char(), scales).shape == (0, 5)
    assert ops.int8_linear(torch.randn(3, 8), torch.ones(0, 8).char(), scales[:0]).shape == (3, 0)
