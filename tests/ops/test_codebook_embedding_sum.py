"""codebook_embedding_sum against its reference and the expression in BarkFineModel.forward."""

import pytest
import torch

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import embedding_inputs

TOLERANCE = 1e-5
"""Absolute, for sums of up to nine unit normals: exact in fp32 but for the order of additions."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tables", "width"), [(1, 1), (2, 13), (3, 64), (8, 100), (8, 768)])
def test_equals_the_twin(isa: str, dtype: torch.dtype, tables: int, width: int) -> None:
    inputs = embedding_inputs(2, 11, 8, tables, width, dtype)
    got = ops.codebook_embedding_sum(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch_ops.codebook_embedding_sum(*inputs), atol=TOLERANCE, rtol=0)


def test_equals_stock(isa: str) -> None:
    codes, tables, positions = embedding_inputs(1, 30, 8, 8, 48)
    looked_up = [torch.nn.functional.embedding(codes[:, :, i], t).unsqueeze(-1) for i, t in enumerate(tables)]
    for last in range(8):
        stock = torch.cat(looked_up, dim=-1)[:, :, :, : last + 1].sum(dim=-1) + positions[None, :30]
        got = ops.codebook_embedding_sum(codes, tables[: last + 1], positions)
        torch.testing.assert_close(got, stock, atol=TOLERANCE, rtol=0)


def test_int32_codes_and_strided_tables(isa: str) -> None:
    codes, _, _ = embedding_inputs(2, 9, 4, 1, 1)
    wide = torch.randn(3, 37, 40)
    tables, positions = [t[:, 4:24] for t in wide], torch.randn(20, 40)[::2, :20]
    got = ops.codebook_embedding_sum(codes.int(), tables, positions)
    torch.testing.assert_close(got, torch_ops.codebook_embedding_sum(codes, tables, positions), atol=TOLERANCE, rtol=0)


def test_codebooks_that_are_not_summed_are_not_read(isa: str) -> None:
    codes, tables, positions = embedding_inputs(1, 4, 3, 2, 8)
    codes[:, :, 2] = 10**6
    got = ops.codebook_embedding_sum(codes, tables, positions)
    summed = tables[0][codes[:, :, 0]] + tables[1][codes[:, :, 1]] + positions[:4]
    torch.testing.assert_close(got, summed, atol=TOLERANCE, rtol=0)


def test_nan_propagates(isa: str) -> None:
    codes, tables, positions = embedding_inputs(1, 4, 2, 2, 8)
    positions[2, 3] = float("nan")
    got = ops.codebook_embedding_sum(codes, tables, positions)
    assert got.isnan().nonzero().tolist() == [[0, 2, 3]]
