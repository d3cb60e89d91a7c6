"""packed_linear: the bits of the products whose weights are packed in every call."""

from __future__ import annotations

import re

import pytest
import torch

from bark_accel.ops import native as ops

from .conftest import int16_linear_inputs

SHAPES = [(1, 32, 1), (15, 64, 65), (29, 96, 512), (100, 32, 900), (1500, 32, 31)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_equals_int16_linear(isa: str, shape: tuple[int, int, int], dtype: torch.dtype, gelu: bool) -> None:
    x, weight, scales, bias, _ = int16_linear_inputs(*shape, dtype, bias=gelu)
    expected = ops.int16_linear(x, weight, scales, bias, gelu)
    assert torch.equal(ops.packed_linear(x, ops.pack_linear(weight, scales), bias, gelu), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_equals_int8_linear(isa: str, shape: tuple[int, int, int], gelu: bool) -> None:
    x, weight, scales, bias, _ = int16_linear_inputs(*shape, torch.int8, bias=gelu)
    expected = ops.int8_linear(x, weight, scales, bias, gelu)
    assert torch.equal(ops.packed_linear(x, ops.pack_linear(weight, scales, True), bias, gelu), expected)


@pytest.mark.parametrize("int8_blocks", [False, True])
def test_parts_are_parts_of_the_outputs(isa: str, int8_blocks: bool) -> None:
    x, weight, scales, _, _ = int16_linear_inputs(20, 96, 300, torch.int8)
    packed = ops.pack_linear(weight, scales, int8_blocks)
    whole, panel = ops.packed_linear(x, packed), packed.shape[3]
    assert torch.equal(ops.packed_linear(x, packed[32 // panel :]), whole[:, 32:])
    assert torch.equal(ops.packed_linear(x, packed[: 32 // panel]), whole[:, :32])


def test_layouts_that_do_not_fit_are_refused() -> None:
    x, weight, scales, _, _ = int16_linear_inputs(3, 32, 300, torch.int8)
    packed = ops.pack_linear(weight, scales)
    for wrong in (packed[0], packed.float(), packed[:, :1], packed[..., :4], packed.transpose(2, 3)):
        with pytest.raises(ValueError, match=re.escape("packed_linear: expected")):
            ops.packed_linear(x, wrong)
    with pytest.raises(ValueError, match="expected bias of shape"):
        ops.packed_linear(x, packed, torch.zeros(31))
    with pytest.raises(ValueError, match="multiple of 32"):
        ops.pack_linear(weight[:31], scales[:31])
    with pytest.raises(ValueError, match="int8_blocks with an int8 weight only"):
        ops.pack_linear(weight.float(), None, True)
    with pytest.raises(ValueError, match="expected scales with an int8 weight"):
        ops.pack_linear(weight)
