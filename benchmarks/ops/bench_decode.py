"""One decode step after 600 cached tokens, in every precision, against Transformers and the memory's read speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BarkModel

from benchmarks.ops.interleaved import STEP, WIDER_CACHE, ReadProbe, compare
from benchmarks.ops.transformers_steps import OurForward, stock_forward, stock_static_forward

CONTEXT = 600
WIDE_CONTEXT = 300
SEMANTIC_ROWS = slice(0, 10_001)
ROUNDS = {"bark-small": 25, "bark": 12}


PRECISIONS = ["same", "float16", "bfloat16", "int8"]
CASES = [("bark-small", precision, batch) for precision in PRECISIONS for batch in (1, 4, 8)]
CASES += [("bark", precision, 1) for precision in PRECISIONS]


@pytest.mark.parametrize(("shape", "precision", "batch"), CASES)
def test_semantic_step(
    benchmark: Any, bark: Callable[[str], BarkModel], shape: str, precision: str, batch: int
) -> None:
    semantic, ids = bark(shape).semantic, torch.full((batch, 1), 17)
    ours = OurForward("semantic", semantic, ids, CONTEXT, precision, SEMANTIC_ROWS)
    baselines = {
        "stock": stock_forward(semantic, ids, CONTEXT),
        "stock, static cache": stock_static_forward(semantic, ids, CONTEXT),
        "read probe": ReadProbe(),
    }
    name = "float32" if precision == "same" else precision
    group = f"decode step, {shape}, {name}, batch {batch}"
    compare(benchmark, group, ours, baselines, rounds=ROUNDS[shape], bytes_read=ours.bytes_read())


@pytest.mark.parametrize("batch", [1, 8, 16, 17, 24, 32])
@pytest.mark.parametrize("precision", ["same", "float16", "int8"])
def test_wide_batches(benchmark: Any, bark: Callable[[str], BarkModel], precision: str, batch: int) -> None:
    """Also more rows than share one reading of the weights: a row of 32 is to cost no more than a row of 16."""
    semantic = bark("bark-small").semantic
    ours, sixteen = (
        OurForward("semantic", semantic, torch.full((rows, 1), 17), WIDE_CONTEXT, precision, SEMANTIC_ROWS)
        for rows in (batch, 16)
    )
    stock = stock_forward(semantic, torch.full((batch, 1), 17), WIDE_CONTEXT)
    name = "float32" if precision == "same" else precision
    group = f"decode step after {WIDE_CONTEXT}, bark-small, {name}, batch {batch}"
    baselines = {"stock": stock, "16 rows of ours": sixteen, "read probe": ReadProbe()}
    compare(benchmark, group, ours, baselines, rounds=9, bytes_read=ours.bytes_read())


@pytest.mark.parametrize("batch", [1, 8, 16, 32])
def test_int8_caches(benchmark: Any, bark: Callable[[str], BarkModel], batch: int) -> None:
    """Int8 weights over keys and values of 8 bits, beside the same step over those of 16."""
    semantic, ids = bark("bark-small").semantic, torch.full((batch, 1), 17)
    ours, wider = (
        OurForward("semantic", semantic, ids, CONTEXT, "int8", SEMANTIC_ROWS, cache_dtype=dtype)
        for dtype in (torch.int8, None)
    )
    baselines = {"stock": stock_forward(semantic, ids, CONTEXT), WIDER_CACHE: wider, "read probe": ReadProbe()}
    group = f"decode step after {CONTEXT}, bark-small, int8, int8 cache, batch {batch}"
    compare(benchmark, group, ours, baselines, rounds=15, bytes_read=ours.bytes_read())


@pytest.mark.parametrize("tokens", [4, 8])
@pytest.mark.parametrize("precision", ["same", "float16"])
def test_verification(benchmark: Any, bark: Callable[[str], BarkModel], precision: str, tokens: int) -> None:
    """Several tokens of one row at once, as self-speculation verifies them, beside a step of one token."""
    semantic, ids = bark("bark-small").semantic, torch.full((1, tokens), 17)
    ours, step = (OurForward("semantic", semantic, its, CONTEXT, precision, SEMANTIC_ROWS) for its in (ids, ids[:, :1]))
    baselines = {"stock": stock_forward(semantic, ids, CONTEXT), STEP: step, "read probe": ReadProbe()}
    name = "float32" if precision == "same" else precision
    group = f"verification of {tokens} tokens, bark-small, {name}"
    compare(benchmark, group, ours, baselines, rounds=15, bytes_read=ours.bytes_read())
