"""Batches of four rows, and the comparison of a row with the same text alone."""

from __future__ import annotations

import torch

from .bark_models import SMALL, preset, texts
from .parity import (
    TOKEN_STAGES,
    assert_same_tokens,
    assert_stock_gives,
    run,
)

INPUTS = texts(SMALL, [4, 9, 2, 12])
VOICES = [None, preset(SMALL, 12, 20, seed=1), preset(SMALL, 40, 60, seed=2), preset(SMALL, 41, 60, seed=3)]
SHARED = preset(SMALL, 40, 60, seed=2)
SAMPLED = {"do_sample": True, "fine_temperature": 0.7}


def row_of(inputs, row):
    return {k: v[row : row + 1] for k, v in inputs.items()}


def generate_alone(model, row, history, **options):
    tokens, audio, _ = run(model, 0, **row_of(INPUTS, row), history_prompt=history, **options)
    return tokens, audio[0]


def assert_row(row, expected, got, *, tails=True):
    """The tokens of a row are those of the same text alone, its end included; `tails`: and nothing follows."""
    padding = {"semantic": SMALL.semantic_vocab, "coarse": 0, "fine": 0}
    for stage in TOKEN_STAGES:
        own = expected[stage][0]
        tokens = got[stage][row]
        assert_same_tokens(f"row {row}, {stage}", own, tokens[..., : own.shape[-1]])
        if tails:
            assert (tokens[..., own.shape[-1] :] == padding[stage]).all()


def assert_row_alone(stock, row, history, got, *, place=None, inputs=INPUTS, audio=None, length=None, **options):
    """Row `place` (default: `row`) is what stock makes of the text alone: tokens, `audio` [S] and its `length`."""

    def check(alone):
        tokens, waveform, _ = alone
        assert_row(row if place is None else place, tokens, got)
        if audio is not None:
            torch.testing.assert_close(audio[: waveform.shape[1]], waveform[0], rtol=0, atol=1e-6)
            assert not audio[waveform.shape[1] :].any()
        assert length in (None, waveform.shape[1])

    assert_stock_gives(check, stock, **row_of(inputs, row), history_prompt=history, **options)
