"""The checkpoint that comes with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, BarkModel

import bark_accel
from bark_accel import small_bark_path
from recipes.small_bark import card, layout, vocabulary

VOICES = ["slt", "rms"]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(small_bark_path())


@pytest.fixture(scope="module")
def model():
    return BarkModel.from_pretrained(small_bark_path())


def say(model, inputs, seed=0, **options):
    torch.manual_seed(seed)
    return model.generate(**inputs, **options)


def test_the_processor_can_be_saved_again(tmp_path):
    assert isinstance(small_bark_path(), str) and isinstance(small_bark_path() / "README.md", Path)
    AutoProcessor.from_pretrained(small_bark_path()).save_pretrained(str(tmp_path))
    inputs = AutoProcessor.from_pretrained(str(tmp_path))("one two", voice_preset="slt")
    expected = AutoProcessor.from_pretrained(small_bark_path())("one two", voice_preset="slt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["history_prompt"]["fine_prompt"], expected["history_prompt"]["fine_prompt"])


def test_it_loads_without_a_network_and_whole():
    code = (
        "from transformers import AutoProcessor, BarkModel; import bark_accel; p = bark_accel.small_bark_path();"
        "m, info = BarkModel.from_pretrained(p, output_loading_info=True); AutoProcessor.from_pretrained(p);"
        "assert not any(info.values()), info; assert str(m.dtype) == 'torch.float32', m.dtype"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_it_is_small():
    files = [path for path in Path(small_bark_path()).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_a_missing_checkpoint_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(bark_accel.small_bark, "__file__", str(tmp_path / "small_bark" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*small_bark, which has no model"):
        small_bark_path()


def test_every_word_is_known_and_others_are_not(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.unk_token_id not in tokenizer(" ".join(vocabulary.words()))["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("hello elephant")["input_ids"]


def test_case_and_punctuation_do_not_matter_and_digits_are_words(processor):
    plain = processor.tokenizer("hello my dog is cute four two")["input_ids"]
    assert processor.tokenizer("Hello, my dog is cute! 42.")["input_ids"] == plain


def test_its_constants_are_those_of_the_recipe_and_not_sunos(model):
    written = json.loads((small_bark_path() / "generation_config.json").read_text())
    temperatures = {name: written[f"{key}_config"]["temperature"] for name, key in STAGES.items()}
    assert written == layout.generation_config(temperatures)
    assert model.generation_config.codebook_size == model.config.codec_config.codebook_size == 512


STAGES = {"semantic": "semantic", "coarse": "coarse_acoustics", "fine": "fine_acoustics"}


@pytest.mark.parametrize("voice", VOICES)
def test_presets_are_in_stocks_format(processor, voice):
    file = small_bark_path() / "speaker_embeddings" / f"{voice}.npz"
    named = processor("hello", voice_preset=str(file))["history_prompt"]
    with np.load(file) as preset:
        frames = preset["fine_prompt"].shape[1]
        shapes = {name: preset[name].shape for name in preset.files}
    assert shapes == {"semantic_prompt": (frames // 2,), "coarse_prompt": (2, frames), "fine_prompt": (6, frames)}
    if "repo_or_path" not in getattr(processor, "available_voice_presets", ["repo_or_path"]):
        by_name = processor("hello", voice_preset=voice)["history_prompt"]
        assert all(torch.equal(by_name[name], named[name]) for name in shapes)


@pytest.mark.parametrize("voice", [None, *VOICES])
def test_it_ends_by_itself_and_takes_longer_over_more_words(processor, model, voice):
    preset = voice and str(small_bark_path() / "speaker_embeddings" / f"{voice}.npz")
    lengths = [say(model, processor(text, voice_preset=preset)).shape[1] for text in ("five", "three five seven nine")]
    assert 0.3 * 16_000 < lengths[0] < lengths[1] < layout.MAX_SEMANTIC * 640


@pytest.mark.parametrize("voice", [None, *VOICES])
def test_accelerated_it_says_the_very_same(processor, voice):
    stock, ours = (BarkModel.from_pretrained(small_bark_path()) for _ in range(2))
    bark_accel.accelerate_bark(ours, strict=True)
    preset = voice and str(small_bark_path() / "speaker_embeddings" / f"{voice}.npz")
    inputs = processor("hello my dog is cute", voice_preset=preset)
    expected = say(stock, inputs)
    audio = say(ours, inputs)
    assert audio.shape == expected.shape
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-4)


def test_the_card_says_what_the_recipe_measured():
    results = json.loads((Path(card.__file__).parent / "test.json").read_text())
    assert (small_bark_path() / "README.md").read_text() == card.write(Path(small_bark_path()), results)


def test_what_the_card_says_of_earlier_measurements():
    evaluate = pytest.importorskip("recipes.small_bark.evaluate", exc_type=ImportError)
    results = json.loads((Path(card.__file__).parent / "test.json").read_text())
    seen = {}
    for kind in vocabulary.KINDS:
        now, before = (set(evaluate.texts(kind, "test", 100, seed)) for seed in (results["seed"], 1))
        seen[kind] = len(now & before)
    text = " ".join((small_bark_path() / "README.md").read_text().split())
    assert f"{seen['digits']} of these texts of digits and {seen['phrases']} of these phrases" in text
    assert f"the split has {evaluate.held('test')} phrases" in text
