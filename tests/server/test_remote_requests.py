"""What comes from a replica, as the front takes it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from bark_accel.server.replicas.messages import Failure
from bark_accel.server.replicas.request import RemoteRequest, RemoteSound


def test_sound_of_a_request_that_is_cancelled_meanwhile_is_dropped(monkeypatch):
    """Whatever it raised would end the connection, and with it the replica's other requests."""
    request = RemoteRequest(RemoteSound(24_000), {"seed": 1}, left=lambda request: None)
    monkeypatch.setattr(request, "check", request.cancel)  # a moment after it was looked whether it goes on
    request.take(np.zeros(5, dtype=np.float32))
    assert request.done() and list(request) == []


class Prefixed(Exception):
    """Another one is made from its `args`."""

    def __init__(self, text: str):
        super().__init__(f"expected {text}")


@pytest.mark.parametrize("error, arrives", [(KeyError("a"), "'a'"), (Prefixed("b"), "Prefixed: expected b")])
def test_an_error_arrives_with_its_text(error, arrives):
    assert str(pickle.loads(pickle.dumps(Failure.of(error))).restored()) == arrives
