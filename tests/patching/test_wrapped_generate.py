"""`generate` under wrappers: whoever looks for what is behind it finds the same."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, texts
from support.parity import accelerated_copy
from support.tiny_text import TEXT, tiny_processor

from bark_accel import acceleration_report, generate_with_preset, long_form, stream
from bark_accel.patches.speaker import model_digest
from bark_accel.streaming.owner import owner_of

INPUTS = texts(SMALL, [9])
OPTIONS = {"do_sample": True, "semantic_max_new_tokens": 20}


def logged(method, calls):
    @functools.wraps(method)
    def call(*args, **kwargs):
        calls.append(len(kwargs))
        return method(*args, **kwargs)

    return call


WRAPPERS = {
    "a decorator": logged,
    "two": lambda method, calls: torch.inference_mode()(logged(method, calls)),
    "arguments": lambda method, calls: functools.partial(logged(method, calls), coarse_temperature=0.9),
}


@pytest.fixture(params=WRAPPERS)
def wrapped(request, small_model):
    """A wrapped model and the calls of its wrapper."""
    model, calls = accelerated_copy(small_model), []
    model.generate = WRAPPERS[request.param](model.generate, calls)
    return model, calls


def test_a_wrapped_generate_makes_presets(wrapped):
    model, calls = wrapped
    torch.manual_seed(1)
    expected = model.generate(**INPUTS, **OPTIONS)
    torch.manual_seed(1)
    audio, preset = generate_with_preset(model, **INPUTS, **OPTIONS)
    assert torch.equal(audio, expected) and len(calls) == 2, "the wrapper and its arguments have their part"
    assert preset["fine_prompt"].shape == (8, audio.shape[1] // 320)


def test_a_wrapped_generate_says_a_long_text(wrapped, small_model):
    """One by one, each as an engine says it."""
    model, calls = wrapped
    greedy = {"do_sample": False, "fine_temperature": None, "semantic_max_new_tokens": 40, "min_eos_p": 0.01}
    said = list(long_form(model, tiny_processor(), TEXT, batch_size=4, **greedy))
    plain = list(long_form(accelerated_copy(small_model), tiny_processor(), TEXT, batch_size=4, **greedy))
    assert len(calls) == len(said) and len({len(chunk.audio) for chunk in said}) > 1
    for one, other in zip(said, plain, strict=True):
        assert torch.equal(one.audio, other.audio)
        np.testing.assert_array_equal(one.preset["fine_prompt"], other.preset["fine_prompt"])


def test_a_wrapped_generate_streams(wrapped):
    model, calls = wrapped
    assert list(stream(model, **INPUTS, **OPTIONS)) and len(calls) == 1


def test_a_wrapped_model_is_the_accelerated_one(wrapped, small_model):
    model, _ = wrapped
    assert model_digest(model) == model_digest(accelerated_copy(small_model)) != model_digest(small_model)
    model.semantic.generate = logged(model.semantic.generate, [])
    assert [stage.stage for stage in acceleration_report(model).stages] == ["semantic", "coarse", "fine", "codec"]


def test_a_stock_generate_of_somebody_else_is_refused_before_any_work(small_model, tmp_path):
    model = copy.copy(small_model)
    model.generate = logged(model.generate, [])
    for call in (
        lambda: generate_with_preset(model, **INPUTS),
        lambda: long_form(model, tiny_processor(), TEXT, work_dir=tmp_path / "work"),
    ):
        with pytest.raises(ValueError, match=r"model.generate: expected BarkModel's own or that of accelerate_bark"):
            call()
    assert not (tmp_path / "work").exists()


def test_the_owner_of_a_method():
    class Owner:
        def method(self): ...

    class Other(Owner): ...

    owner = Owner()
    assert owner_of(owner.method, Owner) is owner and owner_of(logged(owner.method, []), Owner) is owner
    assert owner_of(functools.partial(logged(owner.method, []), 1), Owner) is owner
    for method in (owner.method, None, len, Owner.method, lambda: None):
        assert owner_of(method, Other) is None
