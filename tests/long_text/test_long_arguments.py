"""Arguments of `long_form`: what is refused before any work, and numbers of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, preset
from support.long_text import SAMPLED, assert_same
from support.tiny_text import TEXT

from bark_accel import long_form


def test_numbers_of_numpy(fast, processor):
    plain = {"seed": 3, "batch_size": 2, "max_chunk_s": 2.0, "chunk_pause_s": 1.0}
    numpy = {name: np.asarray(value)[()] for name, value in plain.items()}
    assert_same(*(long_form(fast, processor, "One. Two.", **options, **SAMPLED) for options in (plain, numpy)))


BEYOND = {**preset(SMALL, 20, 30), "semantic_prompt": np.full(9, 5000)}
BAD = {
    "model": ({"model": torch.nn.Linear(1, 1)}, TypeError, "expected a transformers.BarkModel, got Linear"),
    "text": ({"text": None}, TypeError, "text: expected a str, got NoneType"),
    "no words": ({"text": " \n\n "}, ValueError, "text: expected at least one word"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1, got 0"),
    "batch and carry": ({"batch_size": 2, "carry_voice": True}, ValueError, "expected 1 with carry_voice or stream"),
    "batch and stream": ({"batch_size": 2, "stream": True}, ValueError, "expected 1 with carry_voice or stream"),
    "flag": ({"stream": "yes"}, TypeError, "stream: expected True or False, got 'yes'"),
    "policy": ({"policy": "fast"}, ValueError, "policy: expected one of 'exact', .* got 'fast'"),
    "preview": (
        {"policy": "preview", "stream": True, "carry_voice": True},
        ValueError,
        "carry_voice: expected another",
    ),
    "seed": ({"seed": -1}, ValueError, "seed: expected a whole number >= 0, got -1"),
    "limit": ({"max_chunk_s": 0}, ValueError, "max_chunk_s: expected a number > 0, got 0"),
    "limits": ({"max_chunk_s": -1, "characters_per_second": -9}, ValueError, "max_chunk_s: expected a number > 0"),
    "a limit as a string": ({"max_chunk_s": "13"}, ValueError, "max_chunk_s: expected a number > 0, got '13'"),
    "a rate as a string": ({"characters_per_second": "9"}, ValueError, "characters_per_second: .* got '9'"),
    "a pause as a string": ({"paragraph_pause_s": "1"}, ValueError, "paragraph_pause_s: expected seconds .* got '1'"),
    "a pause of None": ({"chunk_pause_s": None}, ValueError, "chunk_pause_s: expected seconds .* got None"),
    "a seed as a string": ({"seed": "1"}, ValueError, "seed: expected a whole number >= 0, got '1'"),
    "a batch as a string": ({"batch_size": "4"}, ValueError, "batch_size: expected a whole number >= 1, got '4'"),
    "language": ({"language": "english"}, ValueError, "language: expected an ISO 639-1 code such as 'en'"),
    "short": ({"max_chunk_s": 0.01}, ValueError, "expected at least 1 character a chunk, got 0.14"),
    "first": ({"first_chunk_s": "3"}, ValueError, "first_chunk_s: expected a number > 0, got '3'"),
    "a short first": ({"first_chunk_s": 0.01}, ValueError, "first_chunk_s .* expected at least 1 character .* 0.14"),
    "progress": ({"on_progress": 3}, TypeError, "on_progress: expected a callable or None, got int"),
    "processor": ({"processor": None}, TypeError, "processor: expected a BarkProcessor, got NoneType"),
    "codes": ({"voice": BEYOND}, ValueError, r"voice\['semantic_prompt'\]: expected codes in 0..100, got 5000..5000"),
    "pause": ({"chunk_pause_s": -0.1}, ValueError, "chunk_pause_s: expected seconds >= 0, got -0.1"),
    "taken": ({"history_prompt": {}}, ValueError, "history_prompt: expected no such argument"),
    "fine temperature": ({"fine_temperature": 0.0}, ValueError, "fine temperature: expected None or a number"),
    "top-k": ({"do_sample": True, "coarse_top_k": -2}, ValueError, "top_k"),
    "top-k of a stream": ({"stream": True, "do_sample": True, "semantic_top_k": -2}, ValueError, "top_k"),
    "two streamers": ({"stream": True, "coarse_streamer": "me"}, ValueError, "got both"),
    "voice": ({"voice": 3}, TypeError, "voice: expected a preset, an .npz file or a name, got int"),
    "name": ({"voice": "me"}, ValueError, "got 'me'; this checkpoint has no named voices"),
    "file": ({"voice": "missing.npz"}, ValueError, "there is no file missing.npz"),
    "preset": ({"voice": {"a": 1}}, ValueError, "expected the keys semantic_prompt, .* got a"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(fast, processor, case, tmp_path):
    wrong, error, message = BAD[case]
    arguments = {"model": fast, "processor": processor, "text": TEXT, "work_dir": tmp_path / "work", **wrong}
    with pytest.raises(error, match=message):
        long_form(**arguments)
    assert not (tmp_path / "work").exists()
