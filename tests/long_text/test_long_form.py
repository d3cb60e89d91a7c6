"""`long_form` on a tiny model: chunks, voices, seeds, pauses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, preset
from support.long_text import LONG, SAMPLED, assert_same, one_by_one
from support.parity import accelerated_copy
from support.tiny_text import CHUNKS, PARAGRAPH_ENDS, TEXT

from bark_accel import long_form, save_voice_preset
from bark_accel.longform.reader import chunk_seed


@pytest.mark.parametrize("stock", [False, True])
def test_chunks_are_what_generate_says(small_model, fast, processor, stock):
    model = small_model if stock else fast
    said = list(long_form(model, processor, TEXT, seed=7, **SAMPLED))
    assert [chunk.text for chunk in said] == CHUNKS and [chunk.index for chunk in said] == list(range(len(CHUNKS)))
    for chunk, (audio, made) in zip(said, one_by_one(model, processor), strict=True):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
        for key, codes in made.items():
            np.testing.assert_array_equal(chunk.preset[key], codes)
        assert chunk.final and chunk.cut == (len(codes[0]) == int(30 * 75 / 49.9))
    assert len({len(chunk.audio) for chunk in said}) > 2


def test_a_voice_is_carried_from_chunk_to_chunk(fast, processor):
    said = long_form(fast, processor, TEXT, seed=7, carry_voice=True, **LONG)
    carried, alone = (list(one_by_one(fast, processor, carry=carry, options=LONG)) for carry in (True, False))
    for chunk, (audio, _) in zip(said, carried, strict=True):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
    assert any(len(a[0]) != len(b[0]) for a, b in zip(carried, alone, strict=True))


def test_a_short_chunk_passes_on_the_voice_it_had(fast, processor):
    voice = preset(SMALL, 60, 90)
    short = {**LONG, "semantic_max_new_tokens": 40}
    carried = long_form(fast, processor, TEXT, voice=voice, carry_voice=True, **short)
    assert_same(carried, long_form(fast, processor, TEXT, voice=voice, batch_size=1, **short))


def test_a_voice_is_given_in_three_ways(fast, small_model, processor, tmp_path):
    voice = {key: codes.numpy() for key, codes in preset(SMALL, 60, 90).items()}
    save_voice_preset(tmp_path / "me.npz", voice)
    named = copy.copy(processor)
    named.speaker_embeddings = {"me": dict.fromkeys(voice, "")}
    named._load_voice_preset = lambda name, **options: voice
    expected = list(one_by_one(fast, processor, voice=voice))
    for given in (voice, tmp_path / "me.npz", str(tmp_path / "me.npz"), "me"):
        said = long_form(fast, named, TEXT, seed=7, voice=given, batch_size=1, **SAMPLED)
        for chunk, (audio, _) in zip(said, expected, strict=True):
            torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
    stock = long_form(small_model, processor, TEXT, seed=7, voice=tmp_path / "me.npz", batch_size=1, **SAMPLED)
    torch.testing.assert_close(next(iter(stock)).audio, expected[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 20}, {"stream": True, "policy": "exact"}])
def test_a_chunk_is_what_it_is_alone(fast, processor, options):
    """To the bit, whoever is beside it."""
    said = list(long_form(fast, processor, TEXT, seed=7, **options, **SAMPLED))
    for index, (audio, made) in enumerate(one_by_one(fast, processor)):
        pieces = [chunk for chunk in said if chunk.index == index]
        assert torch.equal(torch.cat([piece.audio for piece in pieces]), audio)
        for key, codes in made.items():
            np.testing.assert_array_equal(pieces[-1].preset[key], codes)


@pytest.mark.parametrize("settings", [{"weights": "int8"}, {"fit_windows": True}, {"backend": "torch"}], ids=str)
def test_so_it_is_with_other_settings(small_model, processor, settings):
    model = accelerated_copy(small_model, **settings)
    for chunk, (audio, _) in zip(
        long_form(model, processor, TEXT, seed=7, **SAMPLED), one_by_one(model, processor), strict=True
    ):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=1e-6 if "backend" in settings else 0)


def test_seeds_differ_and_leave_the_caller_alone(fast, processor):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (list(long_form(fast, processor, TEXT, seed=seed, **SAMPLED)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first, again)
    assert not torch.equal(first[0].audio, other[0].audio)
    assert len({chunk_seed(seed, index) for seed in range(10) for index in range(100)}) == 1000


def test_pauses_follow_paragraphs_and_chunks(fast, processor):
    options = {"paragraph_pause_s": 0.5, "chunk_pause_s": 0.125, **SAMPLED}
    speech = long_form(fast, processor, TEXT, **options)
    said = list(speech)
    last = len(CHUNKS) - 1
    pauses = [0 if i == last else 12_000 if i in PARAGRAPH_ENDS else 3_000 for i in range(len(CHUNKS))]
    assert [chunk.pause_samples for chunk in said] == pauses and speech.sampling_rate == 24_000
    silence = torch.zeros(12_000)
    parts = [part for c in said for part in (c.audio, silence[: c.pause_samples])]
    assert torch.equal(speech.waveform(), torch.cat(parts))


def test_a_paragraph_without_words_is_two_pauses(fast, processor):
    speech = long_form(fast, processor, "One.\n\n* * *\n\nTwo.\n\nThree.\n\n***", paragraph_pause_s=0.5, **SAMPLED)
    assert [chunk.pause_samples for chunk in speech] == [24_000, 12_000, 0]


@pytest.mark.parametrize("language, characters", [("en", 182), ("zh-CN", 45), ("ja", 58), ("ko", 71), ("hi", 143)])
def test_a_chunk_is_as_long_as_its_language_needs(small_model, processor, language, characters):
    """Of 13 seconds."""
    model = copy.copy(small_model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.semantic_config["max_input_semantic_length"] = 256
    longest = max(len(chunk.text) for chunk in long_form(model, processor, "字" * 300, language=language).chunks)
    assert longest == characters
    given = long_form(model, processor, "字" * 300, language=language, characters_per_second=np.float32(10)).chunks
    assert max(len(chunk.text) for chunk in given) == 130


def test_a_stream_begins_with_a_short_chunk(fast, processor):
    text = "One. Two. Three."
    (whole,) = long_form(fast, processor, text, **SAMPLED).chunks
    speech = long_form(fast, processor, text, stream=True, first_chunk_s=0.5, characters_per_second=10, **SAMPLED)
    assert [chunk.text for chunk in speech.chunks] == ["One.", "Two. Three."] and whole.text == text
    assert [piece.text for piece in speech if piece.final] == ["One.", "Two. Three."]


def test_progress_is_told(fast, processor):
    told: list[tuple[int, int]] = []
    speech = long_form(fast, processor, TEXT, on_progress=lambda *n: told.append(n), **SAMPLED)
    for chunk in speech:
        assert chunk.index < told[-1][0] <= chunk.index + 8, "those ahead may be ready, too"
    assert told == [(count + 1, len(CHUNKS)) for count in range(len(CHUNKS))]


def test_a_chunk_that_fills_the_model_is_reported(fast, processor):
    with pytest.warns(UserWarning, match=r"chunk 0 is as long as Bark can speak at once \(1.8 s\)"):
        (chunk,) = long_form(fast, processor, "Hello.", do_sample=False, fine_temperature=None)
    assert chunk.cut and len(chunk.audio) == 135 * 320


def test_a_chunk_without_sound_is_empty(small_model, processor):
    model = accelerated_copy(small_model)
    for options in ({}, {"stream": True}, {"carry_voice": True}):
        *_, end = long_form(model, processor, "Hello.", semantic_max_new_tokens=1, min_eos_p=1e-9, **options)
        assert end.final and len(end.audio) == 0 and end.preset is None
