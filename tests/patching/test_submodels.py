"""The sub-models' own `generate`, called directly with explicit generation configs, and token streamers."""

from __future__ import annotations

import inspect

import pytest
import torch
from support.bark_models import SMALL, preset, stage_configs, texts
from support.parity import accelerated_copy, assert_same_tokens
from transformers.generation.streamers import BaseStreamer


class Recorder(BaseStreamer):
    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append((tuple(value.shape), value.dtype, value.tolist()))

    def end(self):
        self.events.append("end")


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model)


def both(pair, call, seed=0):
    results = []
    for model in pair:
        torch.manual_seed(seed)
        with torch.no_grad():
            results.append(call(model))
    return results


@pytest.mark.parametrize("history", [None, preset(SMALL, 20, 30)], ids=["no preset", "preset"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 9}, {"max_new_tokens": 5, "do_sample": True}])
def test_each_stage(pair, options, history):
    inputs = texts(SMALL, [3, 7])
    configs = stage_configs(pair[0])
    semantic_config = configs["semantic_generation_config"]
    options = {"max_new_tokens": 33, **options}
    expected, got = both(
        pair,
        lambda m: m.semantic.generate(
            **inputs, semantic_generation_config=semantic_config, history_prompt=history, **options
        ),
    )
    assert_same_tokens("semantic", expected, got)

    two = {k: configs[k] for k in ("semantic_generation_config", "coarse_generation_config")}
    options.pop("max_new_tokens")
    rest = {"codebook_size": SMALL.codebook_size, "history_prompt": history, **options}
    pushed = [expected.clone(), expected.clone()]
    results = []
    for model, semantic in zip(pair, pushed, strict=True):
        torch.manual_seed(0)
        results.append(model.coarse_acoustics.generate(semantic, **two, return_output_lengths=True, **rest))
    for a, b in zip(*results, strict=True):
        assert_same_tokens("coarse", a, b)
    assert torch.equal(*pushed), "stock replaces the padding of its argument in place"

    coarse = results[0][0]
    expected, got = both(pair, lambda m: m.fine_acoustics.generate(coarse.clone(), **configs, **rest))
    assert_same_tokens("fine", expected, got)

    for lengths in (None, torch.tensor([5, expected.shape[2]])):
        a, b = both(pair, lambda m, lengths=lengths: m.codec_decode(expected, lengths))
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8, 50])
def test_codec_of_few_frames(pair, frames):
    codes = torch.randint(0, SMALL.codebook_size, (2, 8, frames))
    expected, got = both(pair, lambda m: m.codec_decode(codes))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert got.shape == expected.shape == (2, 320 * frames)


def test_streamers_see_the_same_events(pair):
    logs = []
    for model in pair:
        torch.manual_seed(0)
        logs.append(Recorder())
        model.generate(**texts(SMALL, [3, 7]), do_sample=True, semantic_max_new_tokens=30, streamer=logs[-1])
    expected, got = (log.events for log in logs)
    assert len(got) == len(expected) > 100
    assert got == expected


def test_signatures_are_those_of_the_replaced_methods(pair):
    stock, fast = pair
    for path in (
        "generate",
        "codec_decode",
        "semantic.generate",
        "coarse_acoustics.generate",
        "fine_acoustics.generate",
    ):
        a, b = (inspect.signature(_resolve(m, path)) for m in (stock, fast))
        assert [(p.name, p.kind, p.default) for p in a.parameters.values()] == [
            (p.name, p.kind, p.default) for p in b.parameters.values()
        ], path


def _resolve(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model
