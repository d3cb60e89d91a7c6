from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from support.servers import running

from bark_accel.server.settings import Settings


@pytest.fixture(scope="module")
def server():
    """The small Bark at a free port."""
    with running(Settings()) as server:
        yield server
