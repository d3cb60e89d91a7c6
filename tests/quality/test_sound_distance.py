"""Distances of sounds, and of the fine stage's approximations, beside a library's or hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch

from bark_accel.bench.approximations import ANOTHER_DRAW, PREVIEW, STOCK, Way, say, sound_distances
from bark_accel.bench.models import load_bark
from bark_accel.bench.sound import log_spectral_distance, mel_cepstral_distortion

RATES = (16_000, 24_000)


def noise(sample_rate: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sample_rate, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", RATES)
def test_a_gain_is_its_decibels_in_the_spectrum_and_nothing_in_the_cepstrum(rate):
    wave = noise(rate)
    assert log_spectral_distance(wave * 2, wave, rate) == pytest.approx(20 * math.log10(2), rel=1e-3)
    assert mel_cepstral_distortion(wave * 2, wave, rate) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("rate", RATES)
def test_the_same_sound_is_no_distance_away_and_another_one_is(rate):
    wave = noise(rate)
    for distance in (log_spectral_distance, mel_cepstral_distortion):
        assert distance(wave, wave, rate) == 0
        assert distance(noise(rate, 1), wave, rate) > 3


@pytest.mark.parametrize("rate", RATES)
def test_a_filter_changes_the_cepstrum_the_more_the_stronger_it_is(rate):
    wave = noise(rate)
    filtered = [wave + strength * wave.roll(1) for strength in (0.1, 0.5, 0.9)]
    distances = [mel_cepstral_distortion(other, wave, rate) for other in filtered]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_ways_of_the_small_bark():
    """Exact weights are stock's codes; a preview has none; what differs in more codes sounds further away."""
    loaded = load_bark()
    model = loaded.model.float()
    inputs = [{**loaded.inputs(text), "semantic_max_new_tokens": 60} for text in ("good morning", "one two three")]
    utterances = [say(model, its, seed=3) for its in inputs]
    ways = {"exact": Way({}), "stream": Way({}, {"policy": "exact"}), "w8a8": Way({"weights": "w8a8"})}
    asked: list[str] = []

    def wanted(way: str) -> bool:
        asked.append(way)
        return way != "unwanted"

    found = dict(sound_distances(model, utterances, ways={**ways, "unwanted": Way({})}, wanted=wanted))
    assert asked == [ANOTHER_DRAW, *ways, "unwanted"] and "unwanted" not in found
    assert {count for _, count in found.values()} == {2}
    for name in (STOCK, "exact", "stream"):
        assert found[name][0].same_fine_codes == 1 and found[name][0].mel_cepstral_distortion_db == 0
    w8a8, drawn, preview = (found[name][0] for name in ("w8a8", ANOTHER_DRAW, PREVIEW))
    assert drawn.same_fine_codes < w8a8.same_fine_codes < 1 and preview.same_fine_codes is None
    assert 0 < w8a8.mel_cepstral_distortion_db < drawn.mel_cepstral_distortion_db
    assert drawn.nats_a_fine_code > found[STOCK][0].nats_a_fine_code


def test_an_utterance_as_long_as_a_window_is_left_out():
    loaded = load_bark()
    inputs = loaded.inputs("one two three four five six seven eight nine")
    limits = [{"semantic_max_new_tokens": tokens, "semantic_min_new_tokens": tokens} for tokens in (20, 80)]
    model = loaded.model.float()
    utterances = [say(model, {**inputs, **limit}, seed=0) for limit in limits]
    found = dict(sound_distances(model, utterances, likelihood=False, ways={}))
    assert found[STOCK][0].nats_a_fine_code is None
    assert {count for _, count in found.values()} == {1}
