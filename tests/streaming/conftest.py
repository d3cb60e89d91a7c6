from __future__ import annotations

import threading

import pytest
from support.bark_models import SMALL, build
from support.generations import INPUTS, OPTIONS
from support.parity import accelerated_copy
from support.streams import build_ending

from bark_accel import acceleration_report
from bark_accel.stages.codec import CodecStage
from bark_accel.streaming.pipeline import ChunkDecoder


@pytest.fixture(scope="module")
def fast():
    return accelerated_copy(build(SMALL))


@pytest.fixture
def leaves_nothing_behind(fast):
    """No thread, no changed attribute, no second key/value cache."""
    fast.generate(**INPUTS, **OPTIONS)
    threads, held = set(threading.enumerate()), acceleration_report(fast).kv_cache_bytes
    attributes = {name: dict(vars(module)) for name, module in fast.named_modules()}
    yield
    assert set(threading.enumerate()) == threads
    assert acceleration_report(fast).kv_cache_bytes == held
    assert {name: dict(vars(module)) for name, module in fast.named_modules()} == attributes


@pytest.fixture
def uncaught():
    """Errors that the generation's own thread ends with."""
    errors, hook = [], threading.excepthook
    threading.excepthook = lambda args: errors.append(args.exc_value)
    yield errors
    threading.excepthook = hook


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model)


@pytest.fixture(scope="module")
def endless():
    """Never ends an utterance itself."""
    model = build_ending(-50.0)
    return model, accelerated_copy(model)


@pytest.fixture
def tapped(monkeypatch):
    """What the decoder and the codec were given: `semantic` [B, T], `coarse` list of [B], `codes` list of [B, K, T]."""
    seen = {"coarse": [], "codes": []}
    push, set_semantic, decode = ChunkDecoder.push, ChunkDecoder.set_semantic, CodecStage.push

    def tap_push(self, tokens):
        seen["coarse"].append(tokens)
        push(self, tokens)

    def tap_semantic(self, tokens, *, final):
        seen["semantic"] = tokens.clone()
        set_semantic(self, tokens, final=final)

    def tap_codec(self, state, codes, **kwargs):
        seen["codes"].append(codes)
        return decode(self, state, codes, **kwargs)

    monkeypatch.setattr(ChunkDecoder, "push", tap_push)
    monkeypatch.setattr(ChunkDecoder, "set_semantic", tap_semantic)
    monkeypatch.setattr(CodecStage, "push", tap_codec)
    return seen
