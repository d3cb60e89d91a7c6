"""Options of `bark-accel serve` as settings of a server."""

from __future__ import annotations

import pytest
from support import command

from bark_accel import acceleration_report
from bark_accel.approximations import Approximations
from bark_accel.cli import serve
from bark_accel.server import run
from bark_accel.server.loading import load_accelerated
from bark_accel.server.settings import ModelSpec

WINDOWS_AND_CACHE = {"fit_windows": True, "long_coarse_windows": True, "kv_cache_dtype": "int8"}


@pytest.mark.parametrize("given, expected", [("1.5", 1610612736), ("inf", None), (None, None)])
def test_a_bound_of_memory(monkeypatch, given, expected):
    settings = []
    monkeypatch.setattr(run, "run", lambda given, *_: settings.append(given))
    monkeypatch.setattr(serve.torch, "set_num_threads", lambda threads: None)
    result = command.run("serve", *(() if given is None else ("--max-memory", given)))
    assert result.exit_code == 0, result.output
    assert settings[0].max_memory_bytes == expected


def test_approximations_are_those_of_every_model(monkeypatch):
    """But for weights that a model names itself."""
    settings = []
    monkeypatch.setattr(run, "run", lambda given, *_: settings.append(given))
    models = ("--model", "small-bark", "--model", "mine=small-bark:w8a8")
    windows = ("--fit-windows", "--long-coarse-windows")
    result = command.run("serve", *models, "--weights", "int8", "--kv-cache-dtype", "int8", *windows)
    assert result.exit_code == 0, result.output
    chosen = [spec.approximations for spec in settings[0].models]
    assert chosen == [Approximations(weights, "int8", True, True) for weights in ("int8", "w8a8")]


@pytest.mark.parametrize("name", ["weights", "kv_cache_dtype"])
def test_unknown_approximations_are_refused_before_a_model_is_loaded(name):
    """Where the command line has not looked at them: `SpeechArgs`."""
    with pytest.raises(ValueError, match=f"{name}: expected one of .*int8.*, got 'int3'"):
        ModelSpec.parse("small-bark", Approximations(**{name: "int3"}))


def test_a_model_is_accelerated_with_its_approximations():
    given = Approximations("w8a8", "int8", fit_windows=True, long_coarse_windows=True)
    report = acceleration_report(load_accelerated(ModelSpec("small-bark", None, given), None).model)
    assert {name: getattr(report, name) for name in WINDOWS_AND_CACHE} == WINDOWS_AND_CACHE
    assert {stage.weights for stage in report.stages if stage.weights is not None} >= {"w8a8"}
