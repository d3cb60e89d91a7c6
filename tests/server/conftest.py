from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from support.deadlines import Deadlines
from support.servers import running

from bark_accel.server.settings import Settings


@pytest.fixture(scope="module")
def server():
    """The small Bark at a free port."""
    with running(Settings()) as server:
        yield server


@pytest.fixture
def deadlines(monkeypatch):
    """Those of requests, which pass when the test says so."""
    return Deadlines(monkeypatch)


@pytest.fixture(scope="module")
def pool():
    """Two replicas of one thread and two rows each; one request may wait."""
    with running(Settings(replicas=2, max_rows=2, max_queued=1)) as server:
        yield server
