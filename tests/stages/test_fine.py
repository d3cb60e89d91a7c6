"""The fine stage computes what somebody reads."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, run

from bark_accel.stages import fine


@pytest.fixture
def passes(monkeypatch):
    """(first frame, frames) that each pass over a window predicts."""
    seen = []
    forward = fine.bidirectional_forward

    def spy(weights, spec, hidden, ops, first_row=0, last_row=None):
        out = forward(weights, spec, hidden, ops, first_row, last_row)
        seen.append((first_row, out.shape[1]))
        return out

    monkeypatch.setattr(fine, "bidirectional_forward", spy)
    return seen


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("history", [0, 30])
def test_the_last_codebook_has_no_padding(small_model, passes, temperature, history):
    """One short window: every pass predicts its padding, which later ones read, but for the last."""
    fast = accelerated_copy(small_model)
    options = {"semantic_max_new_tokens": 20, "fine_temperature": temperature}
    if history:
        options["history_prompt"] = preset(SMALL, 20, history)
    tokens = run(fast, 0, **texts(SMALL, [5]), **options)[0]
    frames = tokens["fine"].shape[2]
    window = fast.generation_config.fine_acoustics_config["max_fine_input_length"]
    assert 0 < frames < window - history
    before_last = len(passes) - 1
    assert passes == [(history, window - history)] * before_last + [(history, frames)]


def test_later_windows_read_all_of_earlier_ones(small_model, passes):
    fast = accelerated_copy(small_model)
    run(fast, 0, **texts(SMALL, [5]), semantic_max_new_tokens=90)
    assert len(passes) % 2 == 0  # two windows or more
    window = fast.generation_config.fine_acoustics_config["max_fine_input_length"]
    assert all(first + frames == window for first, frames in passes)


def test_the_generator_ends_where_stock_s_does(small_model):
    inputs = {**texts(SMALL, [5]), "semantic_max_new_tokens": 20, "fine_temperature": 0.5}
    assert torch.equal(run(small_model, 0, **inputs)[2], run(accelerated_copy(small_model), 0, **inputs)[2])
