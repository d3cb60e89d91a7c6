"""Requests of an engine, together and each alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bark_accel import AudioStreamer, SpeechRequest, generate_with_preset, stream
from bark_accel.engine.engine import make_row
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.slots import Slots
from support.bark_models import SMALL, texts
from support.waiting import LIMIT_S

INPUTS = texts(SMALL, [6])
SHORT = {**INPUTS, "semantic_max_new_tokens": 12}
LONG = {**INPUTS, "semantic_max_new_tokens": 80, "semantic_min_new_tokens": 80}


@dataclass
class Asked:
    """What is asked for, when it arrives, and when, if ever, it is cancelled (in turns of the scheduler)."""

    inputs: dict[str, Any]
    seed: int = 0
    policy: str | None = None
    chunks: dict[str, int] = field(default_factory=dict)
    arrives: int = 0
    cancelled: int | None = None


def alone(model, asked: Asked):
    """(audio [S], voice preset) of `generate`, or `stream`, with that seed."""
    torch.manual_seed(asked.seed)
    if asked.policy is None:
        audio, preset = generate_with_preset(model, **asked.inputs)
        return audio[0].float(), preset
    streamer = AudioStreamer(model, policy=asked.policy, **asked.chunks)
    chunks = list(stream(model, **asked.inputs, streamer=streamer))
    audio = torch.cat(chunks, 1)[0] if chunks else torch.empty(0)
    return audio, streamer.presets[0] if streamer.presets else None


@torch.no_grad()
def together(source, asked: list[Asked], max_rows: int):
    """The requests, after turns of one scheduler in this thread."""
    scheduler = Scheduler(source.models, Slots(source.models, max_rows))
    requests, turn = {}, 0
    while scheduler.busy or len(requests) < len(asked):
        for i, one in enumerate(asked):
            if i not in requests and one.arrives <= turn:
                row = make_row(source, one.inputs, seed=one.seed, policy=one.policy, **one.chunks)
                requests[i] = row.request
                scheduler.add(row)
            if i in requests and one.cancelled is not None and one.cancelled <= turn - one.arrives:
                requests[i].cancel()
        scheduler.turn()
        turn += 1
    return [requests[i] for i in range(len(asked))]


def assert_as_alone(model, asked: Asked, request) -> None:
    """To the bit: the audio, and the tokens of all stages."""
    audio, preset = alone(model, asked)
    assert torch.equal(request.result(0), audio)
    assert (request.preset is None) == (preset is None)
    for part, expected in (preset or {}).items():
        assert (request.preset[part] == expected).all()


def finished(request: SpeechRequest) -> SpeechRequest:
    request.result(LIMIT_S)
    return request


def is_well(model, engine) -> None:
    """It still takes a request, and gives it what it would have alone."""
    assert_as_alone(model, Asked(SHORT, seed=7), finished(engine.submit(**SHORT, seed=7)))
