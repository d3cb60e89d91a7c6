"""Existing scripts: BarkProcessor and the text-to-speech pipeline on an accelerated model."""

from __future__ import annotations

import string
from functools import partial

import numpy as np
import pytest
import torch
from support.bark_models import SUNO
from support.parity import accelerated_copy, assert_equal_to_stock
from support.stock_limits import skip_where_stock_fails
from transformers import BarkProcessor, BertTokenizer, pipeline

from bark_accel import AudioStreamer, batch_inputs


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A BarkProcessor whose tokenizer knows letters (suno's is a BERT tokenizer as well)."""
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), ".", ","]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
    return BarkProcessor(BertTokenizer(str(path)))


@pytest.fixture(scope="module")
def pair(suno_model):
    return suno_model, accelerated_copy(suno_model)


def test_processor(pair, processor):
    inputs = processor(["hello, world.", "good morning"])
    assert inputs["input_ids"].shape == (2, SUNO.max_input)
    assert_equal_to_stock(*pair, **inputs, do_sample=True, semantic_max_new_tokens=20)


def test_processor_with_a_voice_preset(pair, processor):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (8, 120))
    voice = {
        "semantic_prompt": rng.integers(0, 10_000, 80),
        "coarse_prompt": codes[:2].copy(),
        "fine_prompt": codes,
    }
    inputs = processor("hello", voice_preset=voice)
    assert_equal_to_stock(*pair, **inputs, do_sample=True, semantic_max_new_tokens=20)


@pytest.fixture
def voice():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 1024, (8, 90), dtype=np.uint16)
    return {"semantic_prompt": rng.integers(0, 10_000, 60), "coarse_prompt": codes[:2].copy(), "fine_prompt": codes}


@pytest.mark.parametrize("named", ["name", "path", "path without suffix", "Path"])
def test_a_voice_for_each_text(pair, processor, voice, tmp_path, named, monkeypatch):
    stock, fast = pair
    np.savez(tmp_path / "voice.npz", **voice)
    source = {
        "name": "v2/me",
        "path": str(tmp_path / "voice.npz"),
        "path without suffix": str(tmp_path / "voice"),
        "Path": tmp_path / "voice.npz",
    }[named]
    if named == "name":
        for key, value in voice.items():
            np.save(tmp_path / f"{key}.npy", value.astype(np.int64))
        paths = {key: f"{key}.npy" for key in voice}
        processor = BarkProcessor(processor.tokenizer, {"repo_or_path": str(tmp_path), "v2/me": paths})
        # Not in versions before 4.57, whose processors know names all the same.
        monkeypatch.delattr(BarkProcessor, "available_voice_presets", raising=False)
        # Transformers takes the name.
        (tmp_path / "v2").mkdir()
        np.savez(tmp_path / "v2" / "me.npz", **{key: value[..., ::-1] for key, value in voice.items()})
        monkeypatch.chdir(tmp_path)
    texts = ["hello, world.", "good morning", "hello", "good"]
    tensors = {key: torch.from_numpy(value.astype(np.int64)) for key, value in voice.items()}
    inputs = batch_inputs(processor, texts, [source, None, tensors, source])
    assert inputs["input_ids"].shape == (4, SUNO.max_input) and len(inputs["history_prompt"]) == 4
    rows = fast.generate(**inputs, semantic_max_new_tokens=12, trim=True)
    for text, preset, row in zip(texts, [voice, None, voice, voice], rows, strict=True):
        wide = None if preset is None else {key: value.astype(np.int64) for key, value in preset.items()}
        alone = stock.generate(**processor(text, voice_preset=wide), semantic_max_new_tokens=12)
        torch.testing.assert_close(row, alone[0], rtol=0, atol=1e-6)


def test_texts_and_voices_of_a_table(processor, voice, tmp_path):
    np.savez(tmp_path / "voice.npz", **voice)
    path = str(tmp_path / "voice.npz")
    texts = ["hello", "good morning", "hello, world."]
    expected = batch_inputs(processor, texts, [path, None, None])
    for table in (np.array, tuple, iter, partial(np.array, dtype=object)):
        for missing in (None, np.nan, np.float32("nan"), "", " "):
            column = np.array([path, missing, None], dtype=object)
            inputs = batch_inputs(processor, table(texts), iter(column) if table is iter else column)
            assert torch.equal(inputs["input_ids"], expected["input_ids"])
            first, *others = inputs["history_prompt"]
            assert others == [None, None]
            assert all(torch.equal(first[key], expected["history_prompt"][0][key]) for key in voice)


def test_one_voice_for_all_rows(processor, voice, tmp_path):
    np.savez(tmp_path / "voice.npz", **voice)
    for given in (str(tmp_path / "voice.npz"), tmp_path / "voice.npz", voice):
        presets = batch_inputs(processor, ["hello", "good"], given)["history_prompt"]
        assert len(presets) == 2
        for preset in presets:
            assert all(np.array_equal(np.asarray(preset[key]), codes) for key, codes in voice.items())
    assert batch_inputs(processor, ["hello", "good"], None)["history_prompt"] == [None, None]


def test_batch_inputs_move_to_a_device(processor, voice, pair, tmp_path):
    _, fast = pair
    np.savez(tmp_path / "voice.npz", **voice)
    own = {key: torch.from_numpy(codes.astype(np.int64)) for key, codes in voice.items()}
    inputs = batch_inputs(processor, ["hello", "good", "hello"], [tmp_path / "voice.npz", None, own])
    assert inputs.to("cpu") is inputs
    assert fast.generate(**inputs, semantic_max_new_tokens=5).shape[0] == 3
    for device in ("meta", torch.device("meta")):
        moved = batch_inputs(processor, ["hello", "good", "hello"], [tmp_path / "voice.npz", None, own]).to(device)
        assert moved["input_ids"].is_meta and moved["attention_mask"].is_meta
        loaded, none, given = moved["history_prompt"]
        assert none is None and all(part.is_meta for preset in (loaded, given) for part in preset.values())
    half = inputs.to(torch.float16)
    assert half["input_ids"].dtype == half["history_prompt"][0]["fine_prompt"].dtype == torch.int64


BAD_INPUTS = {
    "a text": ("hello", [None], TypeError, "texts: expected a list, got str"),
    "a mapping": ({"a": "hello"}, [None], TypeError, "texts: expected a list, got dict"),
    "a number of voices": (["hello"], 3, TypeError, "voices: expected a list, got int"),
    "a text of a table's empty field": (["a", float("nan")], None, TypeError, "list of str, got float in row 1"),
    "a voice": (["hello"], "v2/me", ValueError, r"voices\[0\]: .* a voice name, got 'v2/me'"),
    "more texts": (["a", "b"], [None], ValueError, "as many voices as texts, at least one, got 1 and 2"),
    "none": ([], [], ValueError, "got 0 and 0"),
    "a number": (["a", "b"], [None, 3], TypeError, r"voices\[1\]: voice: expected a preset, .* got int"),
    "no text": (["a", 3], [None, None], TypeError, "texts: expected a list of str, got int in row 1"),
    "a list": (["a", "b"], [None, ["me"]], TypeError, r"voices\[1\]: voice: expected a preset, .* got list"),
    "unknown": (["a", "b"], [None, "v2/nobody"], ValueError, r"voices\[1\]: .* a voice name, got 'v2/nobody'"),
    "no such file": (["a", "b"], [None, "me.npz"], ValueError, r"voices\[1\]: there is no file me.npz"),
}


@pytest.mark.parametrize("texts, voices, error, message", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_voices_that_do_not_fit(processor, texts, voices, error, message):
    with pytest.raises(error, match=message):
        batch_inputs(processor, texts, voices)
    with pytest.raises(TypeError, match="processor: expected a BarkProcessor, got BertTokenizer"):
        batch_inputs(processor.tokenizer, texts, voices)


def test_a_file_that_is_no_voice_names_its_place(processor, tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"voices\[1\]: .*other.npz: expected the keys"):
        batch_inputs(processor, ["a", "b"], [None, tmp_path / "other.npz"])


@pytest.mark.parametrize("text", ["hello, world.", ["hello, world.", "good morning"]])
def test_text_to_speech_pipeline(suno_model, processor, text):
    fast = accelerated_copy(suno_model)
    outputs = []
    for model in (suno_model, fast):
        speak = pipeline("text-to-speech", model=model, tokenizer=processor.tokenizer, processor=processor)
        torch.manual_seed(0)
        try:
            outputs.append(speak(text, forward_params={"do_sample": True, "semantic_max_new_tokens": 15}))
        except TypeError as error:
            outputs.append([str(error)])
    expected, got = (out if isinstance(out, list) else [out] for out in outputs)
    if isinstance(expected[0], str):
        assert got == expected
        skip_where_stock_fails("text-to-speech pipeline")
    assert all(isinstance(out, dict) for out in expected)
    assert len(expected) == len(got) == (1 if isinstance(text, str) else 2)
    for a, b in zip(expected, got, strict=True):
        assert a["sampling_rate"] == b["sampling_rate"] == 24_000
        np.testing.assert_allclose(b["audio"], a["audio"], rtol=0, atol=1e-6)


def test_text_to_speech_pipeline_with_an_audio_streamer(suno_model, processor):
    skip_where_stock_fails("text-to-speech pipeline")
    fast = accelerated_copy(suno_model, strict=False)
    speak = pipeline("text-to-speech", model=fast, tokenizer=processor.tokenizer, processor=processor)
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=8)
    spoken = speak("hello, world.", forward_params={"semantic_max_new_tokens": 15, "streamer": streamer})
    chunks = list(streamer)
    np.testing.assert_array_equal(np.squeeze(spoken["audio"]), torch.cat(chunks, dim=1)[0].numpy())
