"""float32_conv against torch's convolution in fp64, over shapes, strides, cuts and threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import native as ops

from .conftest import float32_conv_inputs

# Relative to the result's norm, as float32_linear.
TOLERANCE = 1e-6


def expected(
    x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dilation: int, elu: bool
) -> Tensor:
    """What `torch.nn.functional.conv1d` makes of the inputs in float64 [B, C, T]."""
    joined = torch.cat([before, x], dim=1).double().transpose(1, 2)
    joined = F.elu(joined) if elu else joined
    y = F.conv1d(joined, weight.double().permute(2, 1, 0), None if bias is None else bias.double(), dilation=dilation)
    return y.transpose(1, 2) if residual is None else y.transpose(1, 2) + residual.double()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


# Batch, frames, channels, taps, outputs: EnCodec's own layers, and what no panel fits.
SHAPES = [
    (1, 30, 128, 7, 512),
    (2, 40, 512, 2, 96),
    (1, 900, 32, 3, 16),
    (1, 500, 16, 1, 32),
    (2, 300, 32, 7, 1),
    (1, 1, 1, 1, 1),
    (3, 15, 257, 3, 33),
    (1, 29, 700, 2, 31),
    (1, 70, 5, 9, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"elu": True, "bias": True}, {"residual": True, "bias": True, "dilation": 3}])
def test_equals_fp64(isa: str, shape: tuple[int, ...], options: dict[str, int]) -> None:
    inputs = float32_conv_inputs(*shape, **options)
    got = ops.float32_conv(*inputs)
    assert got.shape == (shape[0], shape[1], shape[4]) and got.dtype == torch.float32
    assert relative_error(got, expected(*inputs)) < TOLERANCE


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(
        st.integers(1, 2), st.integers(1, 60), st.integers(1, 300), st.integers(1, 8), st.sampled_from([1, 2, 17, 70])
    ),
    dilation=st.integers(1, 5),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_shape(isa: str, shape: tuple[int, ...], dilation: int, flags: tuple[bool, ...]) -> None:
    bias, residual, elu = flags
    inputs = float32_conv_inputs(*shape, bias=bias, residual=residual, dilation=dilation, elu=elu)
    torch.testing.assert_close(ops.float32_conv(*inputs).double(), expected(*inputs), atol=8e-6, rtol=0)


@pytest.mark.parametrize("outputs", [70, 1])
def test_no_element_depends_on_cuts_rows_or_threads(isa: str, outputs: int) -> None:
    """Frames cut anywhere, rows alone, any number of threads: the same bits."""
    x, before, weight, bias, residual, *_ = float32_conv_inputs(3, 800, 40, 7, outputs, bias=True, residual=True)
    whole = ops.float32_conv(x, before, weight, bias, residual, 1, True)
    joined, threads_before = torch.cat([before, x], dim=1), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for begin, end in ((0, 1), (17, 18), (3, 20), (500, 799), (0, 800)):
                for rows in (slice(0, 3), slice(1, 2)):
                    parts = joined[rows, 6 + begin : 6 + end], joined[rows, begin : begin + 6]
                    got = ops.float32_conv(*parts, weight, bias, residual[rows, begin:end], 1, True)
                    assert torch.equal(got, whole[rows, begin:end])
    finally:
        torch.set_num_threads(threads_before)


def test_elu(isa: str) -> None:
    """The identity as weight: what remains is the ELU's own error."""
    x = torch.cat([torch.linspace(-100, 10, 4001), torch.tensor([0.0, -0.0, float("inf"), float("-inf"), -1e-30])])
    got = ops.float32_conv(x[None, :, None], x.new_zeros(1, 0, 1), torch.ones(1, 1, 1), elu=True)[0, :, 0]
    torch.testing.assert_close(got.double(), F.elu(x.double()), atol=2e-7, rtol=1e-7)


@pytest.mark.parametrize("outputs", [20, 1])
def test_a_bad_input_reaches_what_its_taps_reach(isa: str, outputs: int) -> None:
    x, before, weight, *_ = float32_conv_inputs(1, 60, 30, 3, outputs, dilation=2)
    whole = ops.float32_conv(x, before, weight, dilation=2)
    reached = torch.zeros(60, dtype=torch.bool)
    reached[[25, 27, 29]] = True
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[0, 25, 11] = bad
        got = ops.float32_conv(broken, before, weight, dilation=2)[0]
        assert not got[reached].isfinite().any() and torch.equal(got[~reached], whole[0, ~reached])


def test_empty() -> None:
    weight = torch.randn(2, 8, 5)
    assert ops.float32_conv(torch.randn(2, 0, 8), torch.randn(2, 1, 8), weight).shape == (2, 0, 5)
    assert ops.float32_conv(torch.randn(0, 3, 8), torch.randn(0, 1, 8), weight).shape == (0, 3, 5)
    assert ops.float32_conv(torch.randn(2, 3, 8), torch.randn(2, 1, 8), weight[..., :0]).shape == (2, 3, 0)
