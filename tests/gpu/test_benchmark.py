"""The measurements of `make gpu`, with tiny models, on the GPU or else on the CPU: every line runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from bark_models import SUNO, build

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import gpu_plots

STEPS = {"native_eager_ms", "native_graph_ms", "torch_eager_ms", "torch_graph_ms", "bytes_read"}


def plan(device: torch.device, **more: Any) -> gpu.Plan:
    sizes: dict[str, Any] = {"batch_sizes": (1, 2), "semantic_tokens": 9, "context_tokens": 20, "repeats": 2}
    return gpu.Plan(device, ("tiny",), **{**sizes, "probe_bytes": 2**20, "build": lambda _: build(SUNO), **more})


def test_every_row_is_measured_and_written(device: torch.device, recorded: None, tmp_path: Path) -> None:
    path = tmp_path / "cuda_tiny.json"
    content = gpu.measure_all(plan(device), path)
    assert json.loads(path.read_text()) == content
    rows = [*content["decode_step"], *content["first_sound"], *content["generate"]]
    failed = [row for row in rows if "error" in row]
    assert not failed and not content["left_out_for_lack_of_time"]
    assert len(content["decode_step"]) == 4 * 2 and all(row.keys() >= STEPS for row in content["decode_step"])
    assert [row["policy"] for row in content["first_sound"]] == list(gpu.POLICIES)
    names = ["stock", *gpu.OURS]
    assert [row["name"] for row in content["generate"]] == [*names * 4, "stock, static"]
    exact = [row for row in content["generate"] if "token_differences" in row]
    assert len(exact) == 2 * 3 and not any(row["token_differences"] for row in exact)
    replayed = {row["name"]: row["captured_graphs"] for row in content["generate"] if "captured_graphs" in row}
    assert replayed["bark_accel, graphs"] == 3 and replayed["bark_accel, eager"] == 0
    for picture in ("generate", "decode_step"):
        assert (tmp_path / f"cuda_tiny_{picture}.png").stat().st_size > 1000


def test_what_there_is_no_time_for_is_named(device: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "late.json"
    content = gpu.measure_all(plan(device, seconds=-1), path)
    assert not content["generate"] and "generate: tiny, float32, 1, stock" in content["left_out_for_lack_of_time"]
    assert json.loads(path.read_text()) == content


def test_a_failure_is_a_row_and_the_rest_goes_on(device: torch.device, tmp_path: Path) -> None:
    results = gpu.Results(tmp_path / "r.json", plan(device))

    def fail() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    def hang() -> dict[str, Any]:
        while True:
            pass

    results.add("generate", {"name": "a"}, fail, 0)
    results._plan.seconds = results._plan.seconds - results._plan.left_s + 0.3
    results.add("generate", {"name": "b"}, hang, 0)
    errors = [row["error"] for row in json.loads((tmp_path / "r.json").read_text())["generate"]]
    assert errors[0] == "RuntimeError: out of memory" and errors[1].startswith("TimeoutError: cut off after")
    content = {**results.content, "read_bandwidth_bytes_per_s": 1.0}
    assert len(gpu_plots.save_plots(content, tmp_path / "r.json")) == 2
