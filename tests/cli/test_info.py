"""`bark-accel info`."""

from __future__ import annotations

import torch
from support.command import run

import bark_accel


def test_info_shows_the_build():
    result = run("info")
    assert result.exit_code == 0
    for fact in (bark_accel.__version__, torch.__version__, "instruction sets", "in use"):
        assert fact in result.output


def test_info_says_what_to_run_when_the_library_is_missing(monkeypatch):
    def missing():
        raise ImportError("the compiled library is missing; run make setup")

    monkeypatch.setattr("bark_accel.ops._library.load", missing)
    result = run("info")
    assert result.exit_code == 1
    assert "run make setup" in result.output and torch.__version__ in result.output
