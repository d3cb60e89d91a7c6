"""An engine on a tiny model, and no thread left behind."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager

import pytest
from support.bark_models import SMALL, build
from support.parity import accelerated_copy
from support.waiting import LIMIT_S, until

from bark_accel import BarkEngine
from bark_accel.engine.scheduler import Scheduler


@pytest.fixture(scope="module")
def fast():
    return accelerated_copy(build(SMALL), strict=False)


@pytest.fixture
def engine(fast):
    with BarkEngine(fast, max_rows=3, max_queued=250) as engine:
        yield engine


@pytest.fixture
def hold(monkeypatch):
    """Blocks in which no engine begins a turn: what is asked for in one is not done before its end."""

    @contextmanager
    def held():
        go, turn = threading.Event(), Scheduler.turn
        with monkeypatch.context() as patch:
            patch.setattr(Scheduler, "turn", lambda self: go.wait(LIMIT_S) and turn(self))
            try:
                yield
            finally:
                go.set()

    return held


@pytest.fixture
def stuck(monkeypatch):
    """An engine goes no further than its tenth turn, until its requests are ended from outside."""
    turn, turns = Scheduler.turn, itertools.count(1)

    def get_stuck(self):
        if next(turns) > 10:
            until(lambda: all(row.request.done() for row in (*self._rows, *self._waiting)))
        turn(self)

    monkeypatch.setattr(Scheduler, "turn", get_stuck)


@pytest.fixture(autouse=True)
def leaves_no_thread():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bark_accel")]
