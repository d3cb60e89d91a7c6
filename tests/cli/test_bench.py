"""`bark-accel bench`: what it writes, and that no mode is measured cold."""

from __future__ import annotations

import copy
import json

import pytest
from support.command import run

from bark_accel.bench import models as checkpoints
from bark_accel.bench.models import shared_copy
from bark_accel.cli import bench as bench_module
from bark_accel.hf.stage_trace import STAGES, trace_stages


@pytest.fixture
def tiny(suno_model):
    return shared_copy(suno_model)


def test_bench_writes_what_it_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: tiny)
    arguments = ["--seconds", 0.1, "--repeats", 2, "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    result = run("bench", *arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "b.json").read_text())
    assert {"machine", "versions", "commit", "settings", "summary", "runs"} <= set(record)
    assert record["tokens_equal"] and len(record["runs"]) == 2
    assert set(record["summary"]) == {*STAGES, "total"}
    assert (tmp_path / "b.png").exists()


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_stock_and_accelerated_are_warmed_up_alike(tiny, tmp_path, monkeypatch, command):
    """Each generates once before either is measured, then they take turns."""
    ran = []

    def spy(model, on_stage):
        ran.append("accelerated" if "generate" in vars(model) else "stock")
        return trace_stages(model, on_stage)

    monkeypatch.setattr("bark_accel.hf.stage_trace.trace_stages", spy)
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: tiny)
    options = {"demo": ["--out", tmp_path], "bench": ["--repeats", 1, "--no-baselines"]}[command]
    assert run(command, "--seconds", 0.1, *options).exit_code == 0
    assert ran == ["stock", "accelerated"] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bench_measures_what_a_user_can_do_without_us(tiny, tmp_path, monkeypatch, dtype):
    """In float32; a model in 16 bits has no such rows."""
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: copy.deepcopy(tiny))
    file = tmp_path / "b.json"
    result = run("bench", "--seconds", 0.1, "--repeats", 2, "--dtype", dtype, "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())["baselines"]
    names = ["stock bfloat16", "stock dynamic int8"] if dtype == "float32" else []
    assert list(found) == names and all(name in result.output for name in names)
    assert all(len(runs) == 2 and set(runs[0]) == {*STAGES, "total"} for runs in found.values())


def test_bench_refuses_an_unknown_dtype():
    assert run("bench", "--dtype", "int4").exit_code == 2
    assert "float32" in bench_module.DTYPES
