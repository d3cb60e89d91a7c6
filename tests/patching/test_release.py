"""`release_originals=True`: the same results from less memory, and clear errors for what is gone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.parity import accelerated_copy
from torch import nn

from bark_accel import AccelerationError, accelerate_bark, acceleration_report, restore_bark, stream

INPUTS = texts(SMALL, [9])
OPTIONS = {"semantic_max_new_tokens": 12}
NARROW = ["float16", "bfloat16", "int8", "w8a8"]


@pytest.fixture(scope="module")
def model():
    return build(SMALL)


def generate(model, **more):
    torch.manual_seed(0)
    return model.generate(**INPUTS, **OPTIONS, **more)


def transformers(model):
    return model.semantic, model.coarse_acoustics, model.fine_acoustics


def narrow_bytes(part, weights):
    """Of a module whose matrices are narrow and whose vectors are float32."""
    if isinstance(part, nn.Linear) and weights in ("int8", "w8a8"):
        rows, columns = part.weight.shape
        matrix = rows * (columns + 4 * -(-columns // 64))
    else:
        matrix = sum(2 * p.numel() for p in part.parameters(recurse=False) if p.dim() == 2)
    return matrix + sum(4 * p.numel() for p in part.parameters(recurse=False) if p.dim() == 1)


@pytest.mark.parametrize("weights", NARROW)
def test_generates_from_less_memory(model, weights):
    released = accelerated_copy(model, weights=weights, release_originals=True)
    assert generate(released).shape[1] > 0
    assert all(t.numel() == 0 for part in transformers(released) for t in (*part.parameters(), *part.buffers()))
    expected = [sum(narrow_bytes(m, weights) for m in part.modules()) for part in transformers(model)]
    assert [s.copied_bytes for s in acceleration_report(released).stages[:3]] == expected


def test_16_bit_is_what_stock_weights_cast_by_hand_give(model):
    by_hand = copy.deepcopy(model)
    for part in transformers(by_hand):
        for p in part.parameters():
            if p.dim() == 2:
                p.data = p.data.to(torch.float16).to(torch.float32)
    # Only the embedding tables differ between a copy that keeps its originals and one that does not.
    expected = accelerated_copy(by_hand, weights="float16", speculate=False)
    released = accelerated_copy(model, weights="float16", release_originals=True)
    for options in ({"do_sample": False}, {"history_prompt": preset(SMALL, 20, 30)}):
        assert torch.equal(generate(expected, **options), generate(released, **options))


def test_drafts_are_off_unless_asked_for(model):
    quiet = accelerated_copy(model, weights="float16", release_originals=True)
    drafting = accelerated_copy(model, weights="float16", release_originals=True, speculate=True)
    assert torch.equal(generate(quiet), generate(drafting))
    assert [s.drafts.drafted_tokens > 0 for s in acceleration_report(quiet).stages[:2]] == [False, False]
    assert [s.drafts.drafted_tokens > 0 for s in acceleration_report(drafting).stages[:2]] == [True, True]


def test_streams(model):
    released = accelerated_copy(model, weights="int8", release_originals=True)
    torch.manual_seed(0)
    chunks = list(stream(released, **INPUTS, **OPTIONS))
    assert sum(chunk.shape[1] for chunk in chunks) == generate(released).shape[1]


def test_copies_generate_too(model):
    released = accelerated_copy(model, weights="int8", release_originals=True)
    assert torch.equal(generate(copy.deepcopy(released)), generate(released))
    part = pickle.loads(pickle.dumps(released.semantic))
    torch.manual_seed(0)
    configs = {"semantic_generation_config": semantic_config(released)}
    expected = released.semantic.generate(INPUTS["input_ids"], **configs, max_new_tokens=12, do_sample=False)
    assert torch.equal(part.generate(INPUTS["input_ids"], **configs, max_new_tokens=12, do_sample=False), expected)


def semantic_config(model):
    from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig

    return BarkSemanticGenerationConfig(**model.generation_config.semantic_config)


@pytest.mark.parametrize(
    "action",
    [
        lambda m, path: m.state_dict(),
        lambda m, path: m.semantic.state_dict(),
        lambda m, path: m.save_pretrained(path),
        lambda m, path: m.load_state_dict({}, strict=False),
        lambda m, path: m.semantic(INPUTS["input_ids"]),
    ],
)
def test_what_needs_the_weights_raises(model, action, tmp_path):
    released = accelerated_copy(model, weights="int8", release_originals=True)
    with pytest.raises(RuntimeError, match="release_originals=True gave up"):
        action(released, tmp_path)


@pytest.mark.parametrize("action", [restore_bark, accelerate_bark, lambda m: accelerate_bark(m, weights="float16")])
def test_there_is_no_way_back(model, action):
    released = accelerated_copy(model, weights="int8", release_originals=True)
    before = generate(released)
    with pytest.raises(ValueError, match=r"expected a model that has its weights.*load it again"):
        action(released)
    assert torch.equal(generate(released), before)


def test_no_fallback(model):
    released = accelerated_copy(model, weights="int8", release_originals=True)
    with pytest.raises(AccelerationError, match="release_originals=True rules out"):
        generate(released, coarse_pad_token_id=5)
    released.train()
    with pytest.raises(AccelerationError, match="training mode"):
        generate(released)


def test_needs_smaller_weights(model):
    untouched = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"expected weights of 'float16', .*'w8a8' with it, got 'same'"):
        accelerate_bark(untouched, release_originals=True)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), model.parameters(), strict=True))
    assert "generate" not in vars(untouched)


def in_training_mode(model):
    model.train()


def with_a_hook(model):
    model.fine_acoustics.layers[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("state", [in_training_mode, with_a_hook])
def test_nothing_is_released_from_a_model_that_cannot_run(model, state):
    stopped = accelerated_copy(model, weights="int8", strict=False)
    before = stopped.generate
    state(stopped)
    with pytest.raises(ValueError, match=r"accelerate_bark: .*(training mode|has hooks)"):
        accelerate_bark(stopped, weights="int8", release_originals=True)
    assert stopped.generate == before and all(p.numel() > 0 for p in stopped.parameters())
