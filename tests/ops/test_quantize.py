"""Rounding to int8: how far from the weights, group by group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops.checks import INT8_GROUP
from bark_accel.transformer.precision import quantize
from bark_accel.transformer.weights import Linear


def dequantized(linear: Linear) -> Tensor:
    assert linear.scales is not None
    return linear.weight.double() * linear.scales.double().repeat_interleave(INT8_GROUP, 1)[:, : linear.weight.shape[1]]


def groups(weight: Tensor) -> Tensor:
    """[out, groups, 64], padded with zeros."""
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % INT8_GROUP)).unflatten(1, (-1, INT8_GROUP))


def check(weight: Tensor) -> Linear:
    """Every weight within half a step of its group, the largest of a group at the end of the scale."""
    narrow = quantize(Linear(weight, None))
    outputs, inputs = weight.shape
    count = -(-inputs // INT8_GROUP)
    assert narrow.scales is not None and narrow.scales.dtype == torch.float32
    assert narrow.weight.dtype == torch.int8 and narrow.weight.is_contiguous() and narrow.scales.is_contiguous()
    assert narrow.weight.shape == weight.shape and narrow.scales.shape == (outputs, count)
    top = groups(weight.double()).abs().amax(2)
    torch.testing.assert_close(narrow.scales.double(), top / 127, rtol=1e-6, atol=1e-44)
    error = groups((dequantized(narrow) - weight.double()).abs()).amax(2)
    # The quotient is rounded to float32 before it is rounded to an integer.
    assert (error <= narrow.scales.double() * (0.5 + 127 * 2**-23)).all()
    largest = groups(narrow.weight.int()).abs().amax(2)
    assert torch.equal(largest, torch.where(top > 0, 127, 0).int())
    return narrow


@given(
    outputs=st.integers(1, 6),
    inputs=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 130, 300]),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 5),
)
def test_within_half_a_step(outputs: int, inputs: int, exponent: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    check(torch.randn(outputs, inputs, generator=random) * 2.0**exponent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_sources_count_as_they_are(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 130).to(dtype)
    narrow, wide = check(weight), quantize(Linear(weight.float(), None))
    assert torch.equal(narrow.weight, wide.weight) and torch.equal(narrow.scales, wide.scales)


def test_each_group_has_its_own_scale() -> None:
    """A large weight costs its neighbours in the group their digits, and nobody else."""
    weight = torch.rand(2, 200) + 1
    weight[0, 70] = 1e4
    narrow = check(weight)
    assert (narrow.weight[0, 64:128] != 0).sum() == 1
    assert (narrow.weight[0, :64] > 60).all() and (narrow.weight[0, 128:] > 60).all() and (narrow.weight[1] > 60).all()


def test_groups_of_zeros() -> None:
    weight = torch.randn(3, 140)
    weight[1, 64:128] = 0
    weight[2] = 0
    narrow = check(weight)
    assert narrow.scales[1, 1] == 0 and not narrow.scales[2].any()
    assert torch.equal(dequantized(narrow)[2], torch.zeros(140, dtype=torch.float64))


@pytest.mark.parametrize("tiny", [1e-38, 1e-40, 1e-45])
def test_numbers_too_small_for_a_scale(tiny: float) -> None:
    """Subnormal scales: still finite, and no further off than the weights are large."""
    weight = torch.randn(2, 70).clamp(-2, 2) * tiny
    narrow = quantize(Linear(weight, None))
    assert narrow.scales.isfinite().all()
    assert ((dequantized(narrow) - weight.double()).abs() <= weight.abs().max().double()).all()


@pytest.mark.parametrize(
    "view",
    [lambda w: w.t(), lambda w: w[::2], lambda w: w[:, 5:135], lambda w: w[:, ::2]],
    ids=["transposed", "every other row", "columns", "every other column"],
)
def test_views_of_other_layouts(view) -> None:
    weight = view(torch.randn(200, 140))
    assert not weight.is_contiguous()
    narrow, dense = check(weight), quantize(Linear(weight.contiguous(), None))
    assert torch.equal(narrow.weight, dense.weight) and torch.equal(narrow.scales, dense.scales)


def test_the_source_and_its_bias_stay() -> None:
    weight, bias = torch.randn(3, 70), torch.randn(3)
    before = weight.clone()
    assert quantize(Linear(weight, bias)).bias is bias and torch.equal(weight, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_does_not_vanish(value: float) -> None:
    """The scale of its group says so."""
    weight = torch.randn(2, 140)
    weight[1, 70] = value
    scales = quantize(Linear(weight, None)).scales
    assert scales.isfinite().tolist() == [[True, True, True], [True, False, True]]


@pytest.mark.parametrize(
    ("degrees", "inputs", "of_groups", "of_rows"),
    [(None, 768, 0.59, 0.77), (None, 3072, 0.59, 0.86), (5.0, 768, 0.81, 1.45), (5.0, 3072, 0.81, 1.88)],
)
def test_groups_round_better_than_rows(degrees: float | None, inputs: int, of_groups: float, of_rows: float) -> None:
    """The figures of docs/internals/cpu.md: per cent of the weights, normally distributed or by Student's t."""
    torch.manual_seed(0)
    size = (512, inputs)
    weight = torch.randn(size) if degrees is None else torch.distributions.StudentT(degrees).sample(size)
    step = weight.abs().amax(1, keepdim=True) / 127

    def per_cent(rounded: Tensor) -> float:
        return 100 * float((rounded - weight).norm() / weight.norm())

    assert per_cent(dequantized(quantize(Linear(weight, None)))) == pytest.approx(of_groups, abs=0.02)
    assert per_cent((weight / step).round() * step) == pytest.approx(of_rows, rel=0.08)
