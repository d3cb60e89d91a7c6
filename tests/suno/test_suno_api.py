"""The surface of `bark_accel.suno` beside that of suno's package, its history prompts, and what it refuses."""

from __future__ import annotations

import importlib
import inspect
import io
import shutil
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from support.parity import accelerated_copy
from transformers import AutoProcessor

import bark_accel.suno
import bark_accel.suno.api
import bark_accel.suno.generation as ours
from bark_accel import small_bark_path
from bark_accel.suno import generate_audio, save_as_prompt, use_model
from bark_accel.suno.prompts import load_history_prompt

CODES = np.random.default_rng(0).integers(0, 1024, (8, 30))
# Of `bark.generation`: its own tools and settings, and the names of what it imports.
NOT_OURS = {"InferenceContext", "REMOTE_MODEL_PATHS", "CUR_PATH", "CACHE_DIR", "USE_SMALL_MODELS", "OFFLOAD_CPU"}
NOT_OURS |= {"GLOBAL_ENABLE_MPS", "autocast", "default_cache_dir", "lang", "logger", "models", "models_devices", "n"}
NOT_OURS |= {"prefix", "EncodecModel"}


@pytest.fixture
def small(speaking_model):
    """The small Bark speaks."""
    processor = AutoProcessor.from_pretrained(small_bark_path())
    # Transformers before 4.57 looks for a local checkpoint's voices in the working folder.
    processor.speaker_embeddings["repo_or_path"] = str(small_bark_path())
    yield use_model(accelerated_copy(speaking_model), processor)
    ours.clean_models()


def package() -> Path:
    spec = find_spec("bark")
    if spec is None:
        pytest.skip("suno's package bark 0.1.5 is missing")
    return Path(spec.submodule_search_locations[0])


def public(module) -> set[str]:
    """Names that a module makes itself."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


def test_every_name_of_sunos_package(suno):
    api = importlib.import_module("bark.api")
    assert public(suno) - NOT_OURS <= set(ours.__all__)
    assert public(api) <= set(bark_accel.suno.api.__all__)
    for name in ("generate_audio", "text_to_semantic", "semantic_to_waveform", "save_as_prompt", "SAMPLE_RATE"):
        assert name in bark_accel.suno.__all__
    for name in ours.__all__:
        if name.isupper():
            assert getattr(ours, name) == getattr(suno, name)


def test_every_argument_of_sunos_functions(suno):
    for theirs, own in ((suno, ours), (importlib.import_module("bark.api"), bark_accel.suno.api)):
        for name in public(theirs) & set(own.__all__):
            if callable(getattr(theirs, name)):
                expected = {k: p.default for k, p in inspect.signature(getattr(theirs, name)).parameters.items()}
                parameters = inspect.signature(getattr(own, name)).parameters
                got = {k: p.default for k, p in parameters.items() if p.kind != p.KEYWORD_ONLY}
                assert list(got.items()) == list(expected.items()), name


def test_an_utterance_as_sunos_own(both, suno, tmp_path):
    """With a voice by name, which is then written by one and read by the other."""
    api = importlib.import_module("bark.api")
    voice = suno._load_history_prompt("en_speaker_3")
    voice = {key: voice[key] for key in voice}
    results = []
    for module in (api, bark_accel.suno):
        torch.manual_seed(5)
        tokens = module.text_to_semantic("Hello", "en_speaker_3", 0.9, True)[:40]
        results.append((tokens, *module.semantic_to_waveform(tokens, voice, silent=True, output_full=True)))
    (tokens, expected, sound), (own_tokens, got, own_sound) = results
    np.testing.assert_array_equal(own_tokens, tokens)
    np.testing.assert_allclose(own_sound, sound, rtol=0, atol=1e-6)
    assert got.keys() == expected.keys() and sound.dtype == own_sound.dtype
    save_as_prompt(str(tmp_path / "own.npz"), got)
    api.save_as_prompt(str(tmp_path / "suno.npz"), expected)
    loaded = suno._load_history_prompt(str(tmp_path / "own.npz"))
    for key, codes in load_history_prompt(str(tmp_path / "suno.npz")).items():
        np.testing.assert_array_equal(loaded[key], codes)
        np.testing.assert_array_equal(got[key], codes)


def test_one_function_does_what_the_others_do(small):
    torch.manual_seed(3)
    full, audio = generate_audio("one two", "slt", 0.6, 0.8, silent=True, output_full=True)
    torch.manual_seed(3)
    np.testing.assert_array_equal(generate_audio("one two", "slt", 0.6, 0.8, silent=True), audio)
    torch.manual_seed(3)
    tokens = bark_accel.suno.text_to_semantic("one two", "slt", 0.6, silent=True)
    np.testing.assert_array_equal(tokens, full["semantic_prompt"])
    assert audio.dtype == np.float32 and audio.ndim == 1 and small == 16_000
    # 50 frames a second of 320 samples.
    assert len(audio) == 320 * full["fine_prompt"].shape[1] > 0.3 * small
    again = generate_audio("three", full, silent=True)
    assert len(again) > 0.2 * small


def test_silent_is_silent(small):
    for silent in (True, False):
        shown = io.StringIO()
        with redirect_stderr(shown):
            generate_audio("one", silent=silent)
        assert ("token" in shown.getvalue()) is not silent


@pytest.mark.parametrize("name", ["announcer", "v2/en_speaker_6", "zh_speaker_0"])
def test_voices_of_the_installed_package(name):
    with np.load(package() / "assets" / "prompts" / f"{name}.npz") as expected:
        got = load_history_prompt(name)
        for key in expected:
            np.testing.assert_array_equal(got[key], expected[key])


def test_voices_in_a_folder(tmp_path, monkeypatch):
    voice = {"semantic_prompt": CODES[0], "coarse_prompt": CODES[:2], "fine_prompt": CODES}
    (tmp_path / "v2").mkdir()
    save_as_prompt(tmp_path / "v2" / "en_speaker_6.npz", voice)
    shutil.copy(tmp_path / "v2" / "en_speaker_6.npz", tmp_path / "mine.npz")
    monkeypatch.setenv("BARK_ACCEL_PROMPTS", str(tmp_path))
    for name in ("v2/en_speaker_6", "mine", str(tmp_path / "mine.npz")):
        np.testing.assert_array_equal(load_history_prompt(name)["fine_prompt"], CODES)


def test_voices_of_the_processor(small):
    processor = ours.LOADED["text"].processor
    expected = processor("", voice_preset="slt")["history_prompt"]
    got = load_history_prompt("slt", processor)
    for key in expected:
        np.testing.assert_array_equal(got[key], np.asarray(expected[key]))


@pytest.mark.parametrize(
    "voice, message",
    [
        ("nobody", "'nobody'; voices are found in the folder BARK_ACCEL_PROMPTS"),
        ("gone.npz", "there is no file gone.npz"),
        ({"fine_prompt": CODES}, "expected the keys semantic_prompt, coarse_prompt, fine_prompt"),
        (3, "expected the name of a voice, an .npz file or its arrays, got int"),
    ],
)
def test_voices_that_there_are_not(small, voice, message):
    with pytest.raises((TypeError, ValueError), match=message):
        generate_audio("one", voice, silent=True)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("generate_text_semantic", {"text": 3}, "text: expected a str, got int"),
        ("generate_text_semantic", {"text": " \n"}, "text: expected something to say"),
        ("generate_text_semantic", {"text": "one", "temp": 0.0}, "temp: expected a number above 0, got 0.0"),
        ("generate_text_semantic", {"text": "one", "min_eos_p": 0.0}, "min_eos_p: expected None or a probability"),
        ("generate_text_semantic", {"text": "one", "top_k": 0}, "top_k: expected None or a number of tokens, got 0"),
        ("generate_text_semantic", {"text": "one", "top_p": 1.5}, "top_p: expected None or a probability, got 1.5"),
        ("generate_coarse", {"x_semantic": CODES[0, :0]}, "x_semantic: expected integers .T., not empty"),
        ("generate_coarse", {"x_semantic": [1, 2]}, "x_semantic: expected an array, got list"),
        ("generate_coarse", {"x_semantic": CODES[0] + 10_000}, "x_semantic: expected values in 0..239, got 100"),
        ("generate_coarse", {"x_semantic": CODES[0] % 9, "sliding_window_len": 21}, "expected an even number"),
        ("generate_coarse", {"x_semantic": CODES[0] % 9, "max_coarse_history": 700}, "max_coarse_history: expected"),
        ("generate_fine", {"x_coarse_gen": CODES % 9}, "x_coarse_gen: expected 1 to 5 codebooks, got 8"),
        ("generate_fine", {"x_coarse_gen": CODES[:2] % 9, "temp": -1}, "temp: expected a number above 0, got -1"),
        ("generate_fine", {"x_coarse_gen": CODES[:2] % 9 - 1}, "expected values in 0..511, got -1..7"),
        ("codec_decode", {"fine_tokens": CODES[0]}, "fine_tokens: expected integers .codebooks, T., not empty"),
    ],
)
def test_bad_arguments(small, name, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(ours, name)(**{"silent": True} if name != "codec_decode" else {}, **arguments)


def test_a_voice_whose_parts_do_not_belong_together(small):
    voice = {"semantic_prompt": CODES[0] % 9, "coarse_prompt": CODES[:2] % 9, "fine_prompt": CODES[:6] % 9}
    with pytest.raises(ValueError, match=r"expected 2.0 coarse frames for a semantic token, got 30 for 30"):
        ours.generate_coarse(CODES[0] % 9, voice, silent=True)


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match=r"model: expected a transformers\.BarkModel, got Linear"):
        use_model(torch.nn.Linear(2, 2), None)
