"""Similarity of speakers: what the encoder hears, how voices are ranked, the way into the figures."""

from __future__ import annotations

import sys

import pytest
import torch
from support.command import run
from support.parity import accelerated_copy
from transformers import AutoProcessor

import bark_accel.bench.speaker
from bark_accel import small_bark_path
from bark_accel.bench.approximations import say as stock_says
from bark_accel.bench.approximations import sound_distances
from bark_accel.bench.speaker import SpeakerEncoder, _parts, _spoken, encoder_weights
from bark_accel.bench.voices import Held, Presets, rank_voices
from bark_accel.hf.voices import resolve_voice

installed = pytest.mark.skipif(encoder_weights() is None, reason="the weights of Resemblyzer are not installed")
RATE = 16_000
TEXTS = ("one two three four five", "please turn off the light")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(small_bark_path())


@pytest.fixture(scope="module")
def presets(speaking_model, processor):
    found = {name: resolve_voice(processor, name) for name in ("slt", "rms")}
    return Presets(speaking_model, found, SpeakerEncoder())


@pytest.fixture(scope="module")
def say(speaking_model, processor):
    model = accelerated_copy(speaking_model, strict=False)

    def say(text, voice):
        torch.manual_seed(0)
        return model.generate(**processor(text, voice_preset=voice), do_sample=True)[0]

    return say


@installed
def test_a_voice_is_nearer_to_its_own_preset_than_another_is(presets, say):
    """A voice under another one's name ranks last, with figures to match."""
    assert presets.similarity(presets.embeddings["slt"], "rms") < 0.7
    *_, held = rank_voices(presets, TEXTS, say, seconds=60, at_least=4)
    assert {one.voice for one in held} == {"slt", "rms"} and held[0].score >= held[1].score
    for one in held:
        assert min(one.to_preset) > 0.65 > max(one.to_others) and len(one.to_preset) == 2
    *_, swapped = rank_voices(presets, TEXTS, lambda text, voice: say(text, "slt"), seconds=60, at_least=4)
    assert [one.voice for one in swapped] == ["slt", "rms"]
    assert swapped[1].score < 0.65 < swapped[0].score


@installed
def test_the_time_is_up(presets):
    """Voices take turns, and silence is counted."""
    *_, held = rank_voices(presets, TEXTS, lambda text, voice: torch.zeros(RATE), seconds=0, at_least=3)
    assert {one.voice: one.silent for one in held} == {"slt": 2, "rms": 1}
    assert all(one.score == 0 and not one.to_preset for one in held)
    rankings = list(rank_voices(presets, TEXTS, lambda *_: torch.ones(RATE), seconds=0, at_least=1))
    assert [[one.voice for one in held] for held in rankings] == [["slt"]]


@installed
def test_rate_and_loudness_do_not_matter(say):
    """The same voice at three halves of the rate, by Fourier's series, and at a hundredth of the loudness."""
    wave = say(TEXTS[0], "slt")
    spectrum = torch.fft.rfft(wave)
    longer = torch.nn.functional.pad(spectrum, (0, len(wave) * 3 // 2 // 2 + 1 - len(spectrum)))
    faster = torch.fft.irfft(longer, len(wave) * 3 // 2) * 1.5
    encoder = SpeakerEncoder()
    embeddings = [encoder.embed(w, rate) for w, rate in ((wave, RATE), (faster, 24_000), (0.01 * wave, RATE))]
    assert embeddings[0] @ embeddings[1] > 0.9999 and embeddings[0] @ embeddings[2] > 0.9999
    assert encoder.embed(torch.zeros(RATE), RATE) is None and encoder.embed(torch.zeros(0), RATE) is None
    assert encoder.embed(torch.full((RATE,), float("nan")), RATE) is None
    with pytest.raises(ValueError, match="sample_rate: expected at least 16000, got 8000"):
        encoder.embed(wave, 8_000)


@installed
def test_as_resemblyzer_itself(say):
    """Its own code, where what that needs is installed."""
    sys.modules.setdefault("webrtcvad", type(sys)("webrtcvad"))
    theirs = pytest.importorskip("resemblyzer", exc_type=ImportError)
    wave = say(TEXTS[0], "rms")
    spoken = theirs.normalize_volume(_spoken(wave, RATE).numpy(), -30)
    expected = theirs.VoiceEncoder("cpu", verbose=False).embed_utterance(spoken)
    assert SpeakerEncoder().embed(wave, RATE).numpy() @ expected > 0.99999


@installed
def test_an_approximation_of_the_sound_is_the_same_speaker(speaking_model, processor):
    said = [stock_says(speaking_model, dict(processor(TEXTS[0])), 0)]
    found = dict(sound_distances(speaking_model, said, likelihood=False, speakers=SpeakerEncoder(), ways={}))
    similarity = {name: its.speaker_similarity for name, (its, _) in found.items()}
    assert similarity["stock"] == pytest.approx(1) and 0.8 < similarity["preview"] < 0.9999


def test_silences_are_left_out():
    """Longer ones; of those, a tenth of a second stays on both sides."""
    tone = torch.sin(torch.arange(RATE) * 0.3)
    wave = torch.cat([torch.zeros(RATE), tone, torch.zeros(RATE), tone])
    assert abs(len(_spoken(wave, RATE)) / RATE - 2 - 3 * 0.1) < 0.1
    assert len(_spoken(torch.cat([tone, torch.zeros(RATE // 20), tone]), RATE)) / RATE == pytest.approx(2.05, abs=0.03)


@pytest.mark.parametrize("seconds, parts", [(0.5, 1), (1.6, 1), (1.9, 1), (2.0, 2), (10.0, 12)])
def test_parts_of_an_utterance(seconds, parts):
    """Every 0.77 s one of 1.6 s; the last only where three quarters of it are speech."""
    assert _parts(torch.ones(round(100 * seconds) + 1, 40), seconds).shape == (parts, 160, 40)


def test_without_resemblyzer_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bark_accel.bench.speaker, "find_spec", lambda name: None)
    done = run("check", "--voices", "--minutes", "0")
    assert done.exit_code == 2 and "run pip install --no-deps resemblyzer" in " ".join(done.output.split())


@installed
def test_silence_costs_a_voice_its_rank(presets, say):
    """Half of what is nearest to its preset is not heard: a voice that is always heard goes before it."""

    def sometimes(text, voice):
        return torch.zeros(RATE) if (text, voice) == (TEXTS[1], "slt") else say(text, "slt")

    *_, held = rank_voices(presets, TEXTS, sometimes, seconds=60, at_least=4)
    assert [one.voice for one in held] == ["rms", "slt"] and held[1].silent == 1
    assert held[1].to_preset[0] > max(held[0].to_preset)


def test_figures_of_no_utterance():
    assert Held("slt").score == 0
    assert Held("slt", [0.8], [], silent=3).score == 0.2
