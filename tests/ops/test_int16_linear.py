"""int16_linear against fp64 over shapes, dtypes, strides and value ranges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import native as ops

from .conftest import int16_linear_inputs

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
# Relative to the result's norm; rounding both factors to float16 gives 3.6e-4.
TOLERANCE = 2e-4


def reference(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, gelu: bool) -> Tensor:
    exact = weight.double()
    if scales is not None:
        exact = exact * scales.double().repeat_interleave(64, 1)[:, : weight.shape[1]]
    product = F.linear(x.double(), exact, None if bias is None else bias.double())
    return F.gelu(product) if gelu else product


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (14, 32, 256), (15, 33, 257), (29, 70, 512), (100, 16, 900), (7, 300, 31)]
)
def test_equals_fp64(isa: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    inputs = int16_linear_inputs(*shape, dtype)
    got = ops.int16_linear(*inputs)
    assert got.shape == shape[:2] and got.dtype == torch.float32
    assert relative_error(got, reference(*inputs)) < TOLERANCE


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 60), st.integers(1, 90), st.integers(1, 600), st.sampled_from(DTYPES), st.booleans(), st.booleans()
)
def test_any_shape(rows: int, outputs: int, inner: int, dtype: torch.dtype, bias: bool, gelu: bool) -> None:
    inputs = int16_linear_inputs(rows, outputs, inner, dtype, bias=bias, gelu=False)
    expected = reference(*inputs)
    tolerance = TOLERANCE * (inner**0.5 + 1) * 3  # a few deviations of one element
    torch.testing.assert_close(ops.int16_linear(*inputs).double(), expected, atol=tolerance, rtol=0)
    if gelu:
        got = ops.int16_linear(*inputs[:4], gelu=True)
        torch.testing.assert_close(got.double(), F.gelu(expected), atol=1.2 * tolerance, rtol=0)


def test_gelu_is_exact(isa: str) -> None:
    """The identity as weight: what remains is the GELU's own error and the rounding of its input."""
    x = torch.linspace(-12, 12, 4001)[:, None]
    got = ops.int16_linear(x, torch.ones(1, 1), gelu=True)
    torch.testing.assert_close(got.double(), F.gelu(x.double()), atol=3e-6, rtol=0)


def test_no_sum_overflows(isa: str) -> None:
    """All terms of a sum at their largest, of one sign: the bound on the norms is what keeps them in int32."""
    for inner in (2, 255, 256, 768):
        x, weight = torch.ones(3, inner), torch.ones(5, inner)
        torch.testing.assert_close(ops.int16_linear(x, weight), torch.full((3, 5), float(inner)), atol=0, rtol=4e-4)
        torch.testing.assert_close(ops.int16_linear(x, -weight), torch.full((3, 5), -float(inner)), atol=0, rtol=4e-4)


def test_outliers_and_tiny_values(isa: str) -> None:
    x, weight = torch.randn(20, 512), torch.randn(30, 512)
    x[3, 7], weight[4, 300] = 1e4, -1e3
    for scale in (1e-30, 1.0, 1e30):
        # An outlier of 1e4 leaves the rest of its group 1e4 / 2^15 of resolution, as int16 must.
        got = ops.int16_linear(x * scale, weight)
        assert relative_error(got / scale, x.double() @ weight.double().t()) < 1e-3
    assert not ops.int16_linear(torch.zeros(2, 512), weight).any()


def test_rows_are_independent(isa: str) -> None:
    x, weight = torch.randn(40, 300), torch.randn(20, 300).half()
    whole = ops.int16_linear(x, weight)
    assert torch.equal(ops.int16_linear(x[17:18], weight)[0], whole[17])
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[5, 290] = bad
        got = ops.int16_linear(broken, weight)
        assert got[5].isnan().all()
        keep = torch.arange(40) != 5
        assert torch.equal(got[keep], whole[keep])


def test_many_rows() -> None:
    """More rows than one task takes."""
    inputs = int16_linear_inputs(2100, 35, 300, torch.bfloat16)
    assert relative_error(ops.int16_linear(*inputs), reference(*inputs)) < TOLERANCE


def test_empty() -> None:
    assert ops.int16_linear(torch.randn(0, 8), torch.randn(5, 8)).shape == (0, 5)
    assert ops.int16_linear(torch.randn(3, 8), torch.randn(0, 8)).shape == (3, 0)
