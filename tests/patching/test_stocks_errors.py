"""Errors of Transformers' own code: the same as stock's, without ours around them, and sooner where that helps."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, stage_configs, texts
from support.parity import accelerated_copy

from bark_accel import AudioStreamer
from bark_accel.hf.compat import prompt_argument
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.report import Fallback

INPUTS = texts(SMALL, [4])
SHORT = {"semantic_max_new_tokens": 9}


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model, strict=False)


def error_of(call):
    """The error, which has to be free of our own signal."""
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError, KeyError)) as caught:
        call()
    chain = [caught.value]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    assert not [link for link in chain if isinstance(link, Fallback)]
    return caught.value


def _skip_where_bark_does_not_set_it(model, name):
    if name == "inputs_embeds" and prompt_argument(model.semantic) != name:
        pytest.skip("an older version has another name for it")


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_new_tokens", 20),
        ("max_new_tokens", None),
        ("coarse_max_new_tokens", 20),
        ("logits_processor", []),
        ("coarse_logits_processor", []),
        ("inputs_embeds", None),
        ("semantic_history_prompt", None),
        ("coarse_codebook_size", 64),
        ("coarse_return_output_lengths", True),
        ("fine_codebook_size", 64),
        ("inputs", None),
    ],
)
def test_what_bark_sets_itself(pair, name, value):
    """A TypeError as stock's, and no work is lost on the stages before."""
    stock, fast = pair
    _skip_where_bark_does_not_set_it(stock, name)
    with trace_stages(fast) as trace:
        got = error_of(lambda: fast.generate(**INPUTS, **SHORT, **{name: value}))
    assert trace.seconds == {}
    repeated = name.removeprefix("semantic_").removeprefix("coarse_").removeprefix("fine_")
    with pytest.raises(TypeError, match=rf"got multiple values for (keyword )?argument '{repeated}'"):
        stock.generate(**INPUTS, **SHORT, **{name: value})
    assert isinstance(got, TypeError)
    assert f"got multiple values for keyword argument '{repeated}'" in str(got)
    assert ("pass semantic_max_new_tokens=" in str(got)) == (repeated == "max_new_tokens")


@pytest.mark.parametrize("options", [{"foo": 1}, {"coarse_foo": 1}, {"assistant_model": "the stage"}])
def test_what_transformers_refuses_itself(pair, options):
    errors = []
    for model in pair:
        given = {k: model.semantic if v == "the stage" else v for k, v in options.items()}
        errors.append(error_of(lambda model=model, given=given: model.generate(**INPUTS, **SHORT, **given)))
    assert type(errors[0]) is type(errors[1]) and str(errors[0]) == str(errors[1])


@pytest.mark.parametrize("name, value", [("logits_processor", []), ("inputs_embeds", torch.zeros(1, 17, 32))])
def test_the_semantic_stage(pair, name, value):
    _skip_where_bark_does_not_set_it(pair[0], name)
    config = stage_configs(pair[0])["semantic_generation_config"]
    for model in pair:
        options = {"semantic_generation_config": config, name: value}
        error = error_of(lambda model=model, options=options: model.semantic.generate(**INPUTS, **options))
        assert isinstance(error, TypeError), error
        assert f"got multiple values for keyword argument '{name}'" in str(error)


@pytest.mark.parametrize("name, value", [("logits_processor", []), ("max_new_tokens", 5)])
def test_the_coarse_stage(pair, name, value):
    configs = {k: v for k, v in stage_configs(pair[0]).items() if not k.startswith("fine")}
    tokens = torch.tensor([[3, 4]])
    for model in pair:
        error = error_of(
            lambda model=model: model.coarse_acoustics.generate(tokens, **configs, codebook_size=64, **{name: value})
        )
        assert isinstance(error, TypeError), error
        assert f"got multiple values for keyword argument '{name}'" in str(error)


def test_the_fine_stage_and_the_codec(small_model):
    """Both fall back, and then fail."""
    configs = stage_configs(small_model)
    fast = accelerated_copy(small_model, strict=False)
    fast.fine_acoustics.train()
    fast.codec_model.train()
    codes = torch.full((1, 8), 5)
    error_of(lambda: fast.fine_acoustics.generate(codes, **configs, codebook_size=10**6))
    error_of(lambda: fast.codec_decode(torch.full((1, 8, 9), SMALL.codebook_size)))


def test_a_streamed_generation_that_falls_back(small_model):
    fast = copy.deepcopy(accelerated_copy(small_model, strict=False))
    with torch.no_grad():
        fast.codec_model.quantizer.layers[0].codebook.embed.resize_(3, 128)
    fast.codec_model.train()
    error_of(lambda: fast.generate(**INPUTS, **SHORT, streamer=AudioStreamer(fast)))
