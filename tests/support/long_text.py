"""Long texts in tests: what is said chunk by chunk, and whether two runs are the same."""

from __future__ import annotations

import numpy as np
import torch

from bark_accel import BarkEngine, generate_with_preset
from bark_accel.longform.reader import chunk_seed

from .bark_models import SMALL
from .tiny_text import CHUNKS

# Ends some utterances early.
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30, "min_eos_p": 0.01}
# Long enough for a voice to be carried on.
LONG = {"do_sample": True, "semantic_max_new_tokens": 60}


def assert_same(one, other) -> None:
    """Two runs gave the same pieces, to the bit."""
    one, other = list(one), list(other)
    assert [(c.index, c.text, c.pause_samples, c.final, c.cut) for c in one] == [
        (c.index, c.text, c.pause_samples, c.final, c.cut) for c in other
    ]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.audio, b.audio)
        assert (a.preset is None) == (b.preset is None)
        for key in a.preset or ():
            np.testing.assert_array_equal(a.preset[key], b.preset[key])


def one_by_one(model, processor, voice=None, carry=False, options=SAMPLED):
    """The chunks as a user would say them: seed, generate, take the codes."""
    for index, text in enumerate(CHUNKS):
        torch.manual_seed(chunk_seed(7, index))
        inputs = processor(text, max_length=SMALL.max_input, voice_preset=voice)
        audio, made = generate_with_preset(model, **inputs, **options)
        yield audio[0], made
        if carry and made["coarse_prompt"].shape[1] >= 75:
            voice = made


def begun_of(monkeypatch) -> list:
    """Requests as they are submitted."""
    requests, submit = [], BarkEngine.submit

    def note(self, **arguments):
        requests.append(submit(self, **arguments))
        return requests[-1]

    monkeypatch.setattr(BarkEngine, "submit", note)
    return requests
