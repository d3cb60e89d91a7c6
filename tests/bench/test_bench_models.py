"""Models to measure with: checkpoints, random weights of suno's shapes, copies, inputs."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.bark_models import SUNO, build
from transformers import GPT2Config

from bark_accel import accelerate_bark
from bark_accel.bench import models
from bark_accel.bench.models import fake_inputs, load_bark, semantic_tokens, shared_copy

OPTIONS = {"semantic_max_new_tokens": 8}


def test_another_model_is_asked_for_any_word(checkpoint):
    loaded = load_bark(str(checkpoint))
    assert loaded.vocabulary is None and load_bark().vocabulary[:2] == ("zero", "one")


def test_a_saved_model_loads_back(checkpoint):
    loaded = load_bark(str(checkpoint))
    assert loaded.processor is None and "no usable tokenizer" in loaded.processor_problem
    assert not loaded.model.training
    expected, inputs = build(SUNO), loaded.inputs("hello there")
    torch.testing.assert_close(
        loaded.model.generate(**inputs, **OPTIONS), expected.generate(**inputs, **OPTIONS), rtol=0, atol=0
    )


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path):
    """Of which Transformers makes a Bark of random numbers, with a warning."""
    GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=8).save_pretrained(tmp_path)
    save_file({"wte.weight": torch.zeros(8, 8)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(OSError, match=r"expected a checkpoint of Bark, got .*, of the kind 'gpt2'"):
        load_bark(str(tmp_path))


@pytest.mark.parametrize("left", ["", "version https://git-lfs.github.com/spec/v1\n", "half"])
def test_weights_that_are_cut_short(checkpoint, tmp_path, left):
    """A download that was broken off, or what git leaves without its large files."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if left == "half" else left.encode())
    with pytest.raises(OSError, match=r"expected whole files of weights in .*, got one that cannot be read"):
        load_bark(str(folder))


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="expected one of 'bark-small', 'bark', got 'bark-huge'"):
        models.random_bark("bark-huge")


@pytest.fixture
def a_tiny_shape(monkeypatch):
    monkeypatch.setitem(models.SHAPES, "tiny", {"num_layers": 1, "num_heads": 2, "hidden_size": 8})


def test_a_seed_gives_the_same_weights_and_no_generator_is_changed(a_tiny_shape, monkeypatch):
    for owner, name in ((torch, "manual_seed"), (torch.random, "manual_seed"), (torch.cuda, "manual_seed_all")):
        monkeypatch.setattr(owner, name, lambda seed: pytest.fail("every device's generator was seeded"))
    state = torch.get_rng_state()
    one, same, other = (models.random_bark("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["semantic.lm_head.weight"], other["semantic.lm_head.weight"])


def test_random_weights_are_drawn_on_the_device(a_tiny_shape, monkeypatch):
    seen, draw = [], models._draw_weights

    def watched(submodel):
        seen.extend(parameter.device.type for parameter in submodel.parameters())
        draw(submodel)

    monkeypatch.setattr(models, "_draw_weights", watched)
    model = models.random_bark("tiny", device="meta")
    assert len(seen) > 20 and set(seen) == {"meta"}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_fake_inputs_are_the_same_every_time(suno_model):
    first, again = (fake_inputs(suno_model, "one two one") for _ in range(2))
    assert torch.equal(first["input_ids"], again["input_ids"]) and first["input_ids"].shape == (1, 256)
    ids = first["input_ids"][0]
    assert ids[0] == ids[2] != ids[1] and first["attention_mask"].sum() == 3
    with pytest.raises(ValueError, match="at least one word"):
        fake_inputs(suno_model, " ")


def test_a_shared_copy_shares_weights_and_nothing_else(suno_model):
    copy = shared_copy(suno_model)
    pairs = zip(suno_model.parameters(), copy.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    accelerate_bark(copy)
    assert "generate" not in vars(suno_model) and "generate" not in vars(suno_model.semantic)


def test_lengths_are_asked_for_in_seconds(suno_model):
    assert semantic_tokens(suno_model, 2.0) == 100
    for too_long in (16, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"seconds: expected at most 15.* got {too_long:g}"):
            semantic_tokens(suno_model, too_long)
