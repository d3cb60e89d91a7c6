"""An engine on a tiny model, and no thread left behind."""

from __future__ import annotations

import threading

import pytest
from support.bark_models import SMALL, build
from support.parity import accelerated_copy

from bark_accel import BarkEngine


@pytest.fixture(scope="module")
def fast():
    return accelerated_copy(build(SMALL), strict=False)


@pytest.fixture
def engine(fast):
    with BarkEngine(fast, max_rows=3, max_queued=250) as engine:
        yield engine


@pytest.fixture(autouse=True)
def leaves_no_thread():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bark_accel")]
