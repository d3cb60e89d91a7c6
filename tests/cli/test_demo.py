"""`bark-accel demo`: stock and accelerated say the same, and it is measured fairly."""

from __future__ import annotations

import numpy as np
import soundfile
import torch
from support.command import run

from bark_accel.bench import measure
from bark_accel.cli import demo
from bark_accel.stages.fine import FineStage


def test_demo_compares_and_writes(checkpoint, tmp_path, monkeypatch):
    out, runs = tmp_path / "demo", []
    monkeypatch.setattr(demo, "run_once", lambda *a, **k: runs.append(measure.run_once(*a, **k)) or runs[-1])
    result = run("demo", "--model", checkpoint, "--seconds", 0.2, "--out", out)
    assert result.exit_code == 0, result.output
    samples = [run.outputs["codec"].shape for run in runs]
    assert len(samples) == 4 and samples[:2] == samples[2:], "expected both to be warm at the length that is measured"
    assert "All tokens are equal" in result.output and "no usable tokenizer" in result.output
    for words in ("real-time factor", "ratio", "fell back: never", "1 thread\n"):
        assert words in result.output
    stock, rate = soundfile.read(out / "stock.wav")
    accelerated, _ = soundfile.read(out / "accelerated.wav")
    assert rate == 24_000 and len(stock) > 0
    np.testing.assert_allclose(accelerated, stock, atol=1e-4)
    for name in ("spectrogram.png", "stage_times.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_demo_fails_where_tokens_differ(checkpoint, tmp_path, monkeypatch):
    draw = FineStage._draw
    monkeypatch.setattr(FineStage, "_draw", lambda *arguments: draw(*arguments).index_fill(0, torch.tensor([3]), 0))
    result = run("demo", "--model", checkpoint, "--seconds", 0.1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "NOT equal" in result.output and "fine: " in result.output and "coarse: " not in result.output


def test_demo_speaks_with_the_small_bark_where_no_model_is_named(tmp_path):
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "the small Bark" in result.output and "All tokens are equal" in result.output
    assert "Hello, my dog is cute" in result.output and "made-up ids" not in result.output
    assert soundfile.info(tmp_path / "accelerated.wav").samplerate == 16_000
