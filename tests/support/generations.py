"""A generation in a thread, whose steps a test can count, fail or act in."""

from __future__ import annotations

import threading

from bark_accel.stages.coarse import CoarseStage
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.fine import FineStage
from bark_accel.stages.semantic import SemanticStage

from .bark_models import SMALL, texts
from .waiting import LIMIT_S

INPUTS = texts(SMALL, [6])
OPTIONS = {"semantic_max_new_tokens": 60, "fine_temperature": None}
# Each stage's step, and the call of it to fail or to be cancelled in.
STEPS = {
    "semantic": (SemanticStage, "step", 20),
    "coarse": (CoarseStage, "step", 30),
    "fine": (FineStage, "_fill", 1),
    "codec": (CodecStage, "push", 2),
}


class Generation(threading.Thread):
    """`model.generate` in a thread, as Transformers' documentation shows it."""

    def __init__(self, model, streamer, **options):
        super().__init__()
        self.audio = None
        self._run = lambda: model.generate(**{**INPUTS, **OPTIONS, **options}, streamer=streamer)
        self.start()

    def run(self):
        self.audio = self._run()

    def ends(self):
        self.join(LIMIT_S)
        return not self.is_alive()


def on_call(monkeypatch, stage, act):
    """Do `act` before the stage's step of that number; returns the list of steps done after it."""
    owner, name, at = STEPS[stage]
    step, calls, after = getattr(owner, name), [0], []

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            act()
        elif calls[0] > at:
            after.append(calls[0])
        return step(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return after


def boom():
    raise RuntimeError("boom")
