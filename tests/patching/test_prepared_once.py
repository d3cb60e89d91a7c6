"""A strict call reads each stage's weights and resolves its options once: before any work, for the work as well."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial, wraps
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.parity import accelerated_copy, assert_equal_to_stock
from transformers import BarkModel

from bark_accel import AudioStreamer
from bark_accel.hf.presets import generate_with_presets
from bark_accel.patches import coarse, semantic, stage_patch
from bark_accel.patches.kept_codec import KeptCodec

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 12, "do_sample": True}
ONCE = {"weights of semantic": 1, "weights of coarse": 1, "weights of fine": 1, "weights of codec": 1}
ONCE |= {"options of semantic": 1, "options of coarse": 1}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is read and resolved."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str, what: str, stage: str | None = None) -> None:
        real = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[f"{what} of {stage or args[0]}"] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(stage_patch, "transformer_weights", "weights")
    count(KeptCodec, "weights", "weights", "codec")
    for module in (semantic, coarse):
        count(module, "resolve_sampling", "options")
    return counts


def waveform(model: Any) -> Any:
    return model.generate(**INPUTS, **SHORT)


def presets(model: Any) -> Any:
    return generate_with_presets(model, **INPUTS, **SHORT)


def streamed(model: Any) -> Any:
    return model.generate(streamer=AudioStreamer(model, policy="exact"), **INPUTS, **SHORT)


@pytest.mark.parametrize("call", [waveform, presets, streamed])
def test_strict_prepares_each_stage_once(small_model, prepared, call):
    fast = accelerated_copy(small_model, strict=True)
    prepared.clear()
    call(fast)
    assert prepared == ONCE
    prepared.clear()
    call(fast)
    assert prepared == ONCE


def test_so_do_longer_coarse_windows(small_model, prepared):
    fast = accelerated_copy(small_model, strict=False, long_coarse_windows=True)
    prepared.clear()
    waveform(fast)
    assert prepared == ONCE


def test_weights_written_between_calls_are_read(small_model):
    stock = copy.deepcopy(small_model)
    fast = accelerated_copy(stock, strict=True)
    waveform(fast)
    for model in (stock, fast):
        with torch.no_grad():
            for part in (model.semantic, model.coarse_acoustics, model.fine_acoustics, model.codec_model):
                for parameter in part.parameters():
                    parameter.mul_(1.5)
    assert_equal_to_stock(stock, fast, **INPUTS, **SHORT)


def test_what_a_wrapper_changes_is_heard(small_model, monkeypatch):
    """In the class, behind the check: what was prepared is for other arguments."""
    real = BarkModel.generate

    @wraps(real)
    def hot(self: Any, **kwargs: Any) -> Any:
        return real(self, **kwargs | {"semantic_max_new_tokens": 6, "coarse_temperature": 9.0})

    monkeypatch.setattr(BarkModel, "generate", hot)
    assert_equal_to_stock(small_model, accelerated_copy(small_model, strict=True), **INPUTS, **SHORT)


def test_what_a_stages_wrapper_changes_is_heard(small_model):
    stock, fast = copy.deepcopy(small_model), accelerated_copy(small_model, strict=True)
    for model in (stock, fast):
        model.coarse_acoustics.generate = partial(model.coarse_acoustics.generate, temperature=9.0)
    assert_equal_to_stock(stock, fast, **INPUTS, **SHORT)


def test_a_listener_may_decode_with_another_model(small_model):
    """What a call has prepared of its codec is for that codec."""
    other = copy.deepcopy(small_model)
    with torch.no_grad():
        for parameter in other.codec_model.parameters():
            parameter.mul_(1.5)
    codes = torch.randint(0, SMALL.codebook_size, (1, 8, 12))
    fast, fast_other = accelerated_copy(small_model, strict=True), accelerated_copy(other, strict=True)
    heard: list[torch.Tensor] = []
    with torch.no_grad():
        expected = fast_other.codec_decode(codes)
        fast.generate(**INPUTS, **SHORT, progress=lambda *told: heard.append(fast_other.codec_decode(codes)))
    assert heard and all(torch.equal(waveform, expected) for waveform in heard)
