"""Side by side: stock Transformers and an accelerated copy with the same weights, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import accelerate_bark
from bark_accel.bench.ties import explaining_ties
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.stages.spec import TOKEN_STAGES

from .met_ties import TIES

Run = tuple[dict[str, torch.Tensor], Any, torch.Tensor]
"""See `run`."""


def accelerated_copy(model: BarkModel, **options: Any) -> BarkModel:
    """A deep copy, accelerated; strict unless asked otherwise, so that no comparison is stock against stock."""
    return accelerate_bark(copy.deepcopy(model), **{"strict": True, **options})


def assert_untouched(model: BarkModel) -> None:
    """Nothing of ours is on the model."""
    for owner in (model, model.semantic, model.coarse_acoustics, model.fine_acoustics):
        assert not {"generate", "codec_decode"} & set(vars(owner))


def run(model: BarkModel, seed: int, **kwargs: Any) -> Run:
    """(tokens of each stage and the waveform, what generate returned, the generator's end state)."""
    torch.manual_seed(seed)
    with trace_stages(model) as trace:
        returned = model.generate(**_cloned(kwargs))
    return trace.outputs, returned, torch.get_rng_state()


def _cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _cloned(v) for k, v in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


SOUND_TOLERANCE = 2e-6
"""Of waveforms of stock and ours, float32 both: their roundings differ with the instruction set that torch takes."""


def assert_equal_to_stock(
    stock: BarkModel, fast: BarkModel, seed: int = 0, *, ran: Run | None = None, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """Every stage's tokens (ids, shape, dtype), the waveform, what is returned and the random state are equal.

    `ran`: of stock, for the same seed and arguments, where the test has run it already.
    """
    got = run(fast, seed, **kwargs)
    assert_stock_gives(lambda expected: assert_same_run(expected, got), stock, seed, ran=ran, **kwargs)
    return got[0]


def assert_stock_gives(
    check: Callable[[Run], None], stock: BarkModel, seed: int = 0, *, ran: Run | None = None, **kwargs: Any
) -> None:
    """`check` passes on what stock gives: as it is, or with ties decided the other way (`bark_accel.bench.ties`)."""
    try:
        check(run(stock, seed, **kwargs) if ran is None else ran)
    except AssertionError:
        ties = explaining_ties(stock, lambda model: run(model, seed, **kwargs), lambda given: _passes(check, given))
        if not ties:
            raise
        TIES.extend(map(str, ties))


def _passes(check: Callable[[Run], None], given: Run) -> bool:
    try:
        check(given)
    except AssertionError:
        return False
    return True


def assert_same_run(expected: Run, got: Run) -> None:
    for stage in TOKEN_STAGES:
        assert_same_tokens(stage, expected[0][stage], got[0][stage])
    assert_same_return(expected[1], got[1])
    assert torch.equal(expected[2], got[2]), "the generators end in different states"


def assert_same_tokens(stage: str, expected: torch.Tensor, got: torch.Tensor) -> None:
    assert got.shape == expected.shape, f"{stage}: shape {tuple(got.shape)}, stock {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{stage}: {got.dtype}, stock {expected.dtype}"
    different = (got != expected).nonzero()
    assert len(different) == 0, (
        f"{stage}: {len(different)} of {got.numel()} tokens differ, first at {different[0].tolist()}"
    )


def assert_same_return(expected: Any, got: Any) -> None:
    if isinstance(expected, tuple):
        assert got[1] == expected[1], f"output lengths {got[1]}, stock {expected[1]}"
        expected, got = expected[0], got[0]
    assert got.shape == expected.shape and got.dtype == expected.dtype
    # The same convolutions on folded weights: rounding only.
    torch.testing.assert_close(got, expected, rtol=0, atol=SOUND_TOLERANCE)
