"""float32_linear against fp64 over shapes, strides and value ranges; no worse than torch's own product."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import _library
from bark_accel.ops import native as ops

from .conftest import float32_linear_inputs

# Relative to the result's norm. Unit roundoff is 6e-8; chains of 256 products, as here, give about 3e-7.
TOLERANCE = 1e-6


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    product = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    product = F.gelu(product) if gelu else product
    return product if residual is None else product + residual.double()


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


SHAPES = [(1, 1, 1), (14, 32, 256), (15, 33, 257), (29, 70, 512), (100, 16, 900), (7, 300, 31), (260, 40, 3072)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"residual": True}, {"bias": True, "residual": True}])
def test_equals_fp64(isa: str, shape: tuple[int, int, int], options: dict[str, bool]) -> None:
    inputs = float32_linear_inputs(*shape, **options)
    got = ops.float32_linear(*inputs)
    assert got.shape == shape[:2] and got.dtype == torch.float32
    assert relative_error(got, reference(*inputs)) < TOLERANCE


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 600), st.booleans(), st.booleans(), st.booleans())
def test_any_shape(rows: int, outputs: int, inner: int, bias: bool, residual: bool, gelu: bool) -> None:
    inputs = float32_linear_inputs(rows, outputs, inner, bias=bias, residual=residual, gelu=gelu)
    torch.testing.assert_close(ops.float32_linear(*inputs).double(), reference(*inputs), atol=8e-6, rtol=0)


@pytest.mark.parametrize("inner", [768, 3072])
def test_no_worse_than_torch(isa: str, inner: int) -> None:
    x, weight = torch.randn(200, inner), torch.randn(100, inner)
    expected = x.double() @ weight.double().t()
    # Torch's chains are shorter or longer, by the instruction set it takes: the same size of error is what counts.
    error = relative_error(ops.float32_linear(x, weight), expected)
    assert error < 1.5 * relative_error(F.linear(x, weight), expected) + 1e-7


def test_gelu_is_exact(isa: str) -> None:
    """The identity as weight: what remains is the GELU's own error."""
    x = torch.linspace(-12, 12, 4001)[:, None]
    got = ops.float32_linear(x, torch.ones(1, 1), gelu=True)
    torch.testing.assert_close(got.double(), F.gelu(x.double()), atol=1e-6, rtol=0)


def test_no_element_depends_on_other_rows_or_threads(isa: str) -> None:
    """More rows than are packed at once, cut anywhere, by any number of threads: the same bits."""
    x, weight, bias, residual, _ = float32_linear_inputs(1100, 50, 2000, bias=True, residual=True)
    whole = ops.float32_linear(x, weight, bias, residual)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for rows in (slice(0, 1), slice(17, 18), slice(3, 20), slice(500, 1099), slice(0, 1100)):
                assert torch.equal(ops.float32_linear(x[rows], weight, bias, residual[rows]), whole[rows])
    finally:
        torch.set_num_threads(before)


def test_a_bad_row_stays_alone(isa: str) -> None:
    x, weight = torch.randn(40, 300), torch.randn(20, 300)
    whole = ops.float32_linear(x, weight)
    keep = torch.arange(40) != 5
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[5, 290] = bad
        got = ops.float32_linear(broken, weight)
        assert not got[5].isfinite().any() and torch.equal(got[keep], whole[keep])
        column = weight.clone()
        column[7, 3] = bad
        got = ops.float32_linear(x, column)
        assert not got[:, 7].isfinite().any() and got.isfinite().sum() == 40 * 19


def test_extreme_values(isa: str) -> None:
    x, weight = torch.randn(20, 512), torch.randn(30, 512)
    expected = x.double() @ weight.double().t()
    for scale in (1e-30, 1e30):
        assert relative_error(ops.float32_linear(x * scale, weight) / scale, expected) < TOLERANCE
    assert not ops.float32_linear(torch.zeros(2, 512), weight).any()


def test_empty() -> None:
    assert ops.float32_linear(torch.randn(0, 8), torch.randn(5, 8)).shape == (0, 5)
    assert ops.float32_linear(torch.randn(3, 8), torch.randn(0, 8)).shape == (3, 0)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_vnni"])
def test_accumulators_stay_in_registers(isa: str) -> None:
    """Between the first and last multiply-add of a tile nothing is stored: GCC 12 spills such arrays easily."""
    if isa not in _library.load().available_isas():
        pytest.skip(f"built without {isa}")
    library = _library.load().file
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True).stdout
    if ".text" not in subprocess.run(["objdump", "-t", library], capture_output=True, text=True).stdout:
        pytest.skip("built without symbols, as a wheel is")
    bodies = re.findall(rf"^[0-9a-f]+ <\w*{isa}15multiply_floats\w*>:\n(.*?)\n\n", text, re.M | re.S)
    assert len(bodies) == 1, f"expected one multiply_floats of {isa} (a local symbol), got {len(bodies)}"
    lines = bodies[0].splitlines()
    products = [i for i, line in enumerate(lines) if "vfmadd" in line]
    assert len(products) == (12 if isa == "avx2" else 28)
    loop = lines[products[0] : products[-1]]
    stores = [line for line in loop if re.search(r"vmov[au]p[sd].*%[yz]mm\d+,.*\(", line)]
    reloads = [line for line in loop if "(%rsp" in line or "(%rbp" in line]
    assert not stores and not reloads
