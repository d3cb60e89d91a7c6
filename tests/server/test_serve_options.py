"""Options of `bark-accel serve` as settings of a server."""

from __future__ import annotations

import pytest
from support import command

from bark_accel.cli import serve
from bark_accel.server import run


@pytest.mark.parametrize("given, expected", [("1.5", 1610612736), ("inf", None), (None, None)])
def test_a_bound_of_memory(monkeypatch, given, expected):
    settings = []
    monkeypatch.setattr(run, "run", lambda given, *_: settings.append(given))
    monkeypatch.setattr(serve.torch, "set_num_threads", lambda threads: None)
    result = command.run("serve", *(() if given is None else ("--max-memory", given)))
    assert result.exit_code == 0, result.output
    assert settings[0].max_memory_bytes == expected
