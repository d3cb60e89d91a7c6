"""Encoders alone: what they leave behind, and that pieces make no difference."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from support.waiting import until

from bark_accel.server.encoding import FORMATS, Encoder

RATE = 16_000
SAMPLES = np.sin(np.arange(RATE) / 20).astype(np.float32)


def encoded(name: str, speed: float, cuts: list[int]) -> bytes:
    with Encoder(name, RATE, speed) as encoder:
        return b"".join(map(encoder.encode, np.split(SAMPLES, cuts))) + encoder.finish()


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("speed", [1.0, 2.0])
@pytest.mark.parametrize("name", FORMATS)
def test_no_thread_stays(name, speed, no_collector):
    """Also where a client has left before the end; in a server they were hundreds, with memory of their own."""
    encoded(name, speed, [])
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        encoded(name, speed, [])
        with Encoder(name, RATE, speed) as encoder:
            encoder.encode(SAMPLES)
    # Those of an earlier test may end; one that ends is seen for a moment.
    until(lambda: len(os.listdir("/proc/self/task")) <= before)


@pytest.mark.parametrize("name", FORMATS)
def test_cuts_make_no_difference(name):
    assert encoded(name, 1.0, []) == encoded(name, 1.0, [1, 700, 701, 9000])
