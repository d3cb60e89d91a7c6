"""Tokens of `bark_accel.suno` beside those of suno's own code and classes, for the same weights and the same seed."""

from __future__ import annotations

import numpy as np
import pytest

TEXT = "Hello,  my dog\nis cute"
RNG = np.random.default_rng(0)
LONG_SEMANTIC = RNG.integers(0, 10_000, 300)
CODES = RNG.integers(0, 1024, (8, 1300))


def prompt(semantic: int, frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    fine = rng.integers(0, 1024, (8, frames))
    return {
        "semantic_prompt": rng.integers(0, 10_000, semantic),
        "coarse_prompt": fine[:2].copy(),
        "fine_prompt": fine,
    }


VOICE, LONG_VOICE = prompt(80, 120), prompt(500, 751)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_eos_p": None},
        {"min_eos_p": 0.004},
        {"temp": 1.3, "min_eos_p": 0.05},
        {"temp": 1e-3},
        {"top_k": 5},
        {"top_p": 0.6, "temp": 0.5},
        {"top_p": 0.9, "top_k": 30, "min_eos_p": None},
        {"history_prompt": VOICE},
        {"history_prompt": LONG_VOICE},
        {"allow_early_stop": False, "max_gen_duration_s": 2},
        {"max_gen_duration_s": 0.5, "use_kv_caching": True},
        {"allow_early_stop": False, "max_gen_duration_s": sum([1 / 49.9] * 10)},
        {"allow_early_stop": False, "max_gen_duration_s": 7.3 / 49.9},
    ],
    ids=str,
)
def test_semantic_tokens(both, options):
    limit = {"max_gen_duration_s": 1.5} if "max_gen_duration_s" not in options else {}
    for seed in range(2):
        expected, got = both.call(
            "generate_text_semantic", TEXT, silent=True, seed=seed, **{"use_kv_caching": True, **limit, **options}
        )
        np.testing.assert_array_equal(got, expected)


def test_the_end_of_speech_comes_at_different_times(both):
    """So that the tests above compare more than the longest utterances."""
    lengths = {
        len(both.call("generate_text_semantic", TEXT, silent=True, seed=s, min_eos_p=0.004)[1]) for s in range(8)
    }
    assert len(lengths) > 1


def test_as_long_as_the_model_can_speak(both):
    expected, got = both.call(
        "generate_text_semantic", TEXT, allow_early_stop=False, silent=True, use_kv_caching=True
    )  # fmt: skip
    np.testing.assert_array_equal(got, expected)
    assert len(got) == 768


def test_a_text_that_is_cut(both):
    with pytest.warns(UserWarning, match="a text of 400 is cut"):
        expected, got = both.call("generate_text_semantic", "a" * 400, silent=True, max_gen_duration_s=0.3)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temp": 1e-3},
        {"top_k": 4},
        {"top_p": 0.7, "temp": 1.2},
        {"top_p": 0.9, "top_k": 20},
        {"history_prompt": VOICE},
        {"history_prompt": LONG_VOICE},
        {"max_coarse_history": 60, "sliding_window_len": 20},
        {"max_coarse_history": 100, "sliding_window_len": 200, "history_prompt": VOICE},
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [1, 47, 300])
def test_coarse_codes(both, options, tokens):
    expected, got = both.call(
        "generate_coarse", LONG_SEMANTIC[:tokens], silent=True, seed=tokens, use_kv_caching=True, **options
    )
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("codebooks, frames", [(2, 1), (2, 90), (2, 1024), (2, 1300), (1, 90), (5, 90)])
@pytest.mark.parametrize("history", [None, VOICE, LONG_VOICE], ids=["none", "short", "long"])
def test_fine_codes(both, codebooks, frames, history):
    expected, got = both.call("generate_fine", CODES[:codebooks, :frames], history, seed=frames)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("temp", [None, 0.2, 1.0])
def test_temperature_of_the_fine_stage(both, temp):
    expected, got = both.call("generate_fine", CODES[:2, :50], temp=temp)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("codebooks", [2, 8])
def test_sound(both, codebooks):
    expected, got = both.call("codec_decode", CODES[:codebooks, :40])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
