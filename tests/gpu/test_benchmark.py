"""The measurements of `make gpu`, with tiny models, on the GPU or else on the CPU: every line runs."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from bark_models import SUNO, build

from bark_accel.bench import measure

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import gpu_generate
import gpu_plots
import gpu_results
import gpu_steps

STEPS = {f"{ops}_{how}" for ops in ("native", "torch") for how in ("eager_ms", "graph_ms", "graph_of_bandwidth")}


def plan(device: torch.device, **more: Any) -> gpu_results.Plan:
    sizes: dict[str, Any] = {"batch_sizes": (1, 2), "semantic_tokens": 9, "context_tokens": 20, "repeats": 2}
    sizes |= {"docs_batch_sizes": (1, 3), "docs_semantic_tokens": 12, "probe_bytes": 2**20}
    if device.type == "cuda":
        # Transformers compiles its static cache there, which takes minutes.
        sizes["tables"] = tuple(table for table in gpu_results.TABLES if table != "variants")
    return gpu_results.Plan(device, ("tiny",), **{**sizes, "build": lambda _: build(SUNO), **more})


def test_every_row_is_measured_and_written(device: torch.device, recorded: None, tmp_path: Path) -> None:
    path = tmp_path / "results" / "cuda_tiny.json"
    content = gpu.measure_all(plan(device), path)
    assert json.loads(path.read_text()) == content
    tables = ("decode_step", "kernels", "first_sound", "generate", "docs")
    failed = [row for table in tables for row in content[table] if "error" in row]
    assert not failed and not content["failed"] and not content["left_out_for_lack_of_time"]
    assert len(content["decode_step"]) == 4 * 2
    assert all(row.keys() >= STEPS and row["bytes_read"] > 0 for row in content["decode_step"])
    assert [row["policy"] for row in content["first_sound"]] == list(gpu_generate.POLICIES)
    static = [] if device.type == "cuda" else ["stock, static"]
    assert [row["name"] for row in content["generate"]] == [*["stock", *gpu_generate.OURS] * 4, *static]
    exact = [row for row in content["generate"] if "token_differences" in row]
    assert len(exact) == 2 * 3 and not any(row["token_differences"] for row in exact)
    replayed = {row["name"]: row["captured_graphs"] for row in content["generate"] if "captured_graphs" in row}
    assert replayed["bark_accel, graphs"] == 3 and replayed["bark_accel, eager"] == 0
    docs = [(row["batch_size"], row["name"], row["utterances_per_s"] > 0) for row in content["docs"]]
    assert docs == [(rows, name, True) for rows in (1, 3) for name in ("stock", "bark_accel, graphs")]
    for picture in ("generate", "decode_step") if find_spec("matplotlib") else ():
        assert (path.parent / f"cuda_tiny_{picture}.png").stat().st_size > 1000


def test_the_kernels_of_a_step_add_up(device: torch.device, recorded: None, tmp_path: Path) -> None:
    content = gpu.measure_all(plan(device, tables=("decode_step",)), tmp_path / "steps.json")
    assert not content["generate"] and [row["batch_size"] for row in content["kernels"]] == [1, 2]
    for row in content["kernels"]:
        names = [kernel["kernel"] for kernel in row["kernels"]]
        assert any(("Gemv<" if device.type == "cuda" else "decode_step") in name for name in names), names
        listed = sum(kernel["us_per_step"] for kernel in row["kernels"])
        assert 0 < listed <= row["us_per_step"] * 1.001


def test_kernel_names_are_short() -> None:
    ours = "void bark_accel::cuda::entry<bark_accel::cuda::Gemv<bark_accel::Half, 1> >(bark_accel::cuda::GemvParams)"
    assert gpu_steps.short_name(ours) == "Gemv<Half, 1> "
    torchs = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<long>>(int, long)"
    assert gpu_steps.short_name(torchs) == "vectorized_elementwise_kernel<4, FillFunctor<long>>"


def test_what_there_is_no_time_for_is_named(device: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "late.json"
    content = gpu.measure_all(plan(device, seconds=-1), path)
    late = content["left_out_for_lack_of_time"]
    assert not content["generate"] and {"generate: tiny, float32, 1, stock", "docs: tiny, float16, 3, 12, stock"} < set(
        late
    )
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(
    "broken, table",
    [
        ("gpu.read_bandwidth", "docs"),
        ("gpu_steps.convert", "decode_step"),
        ("gpu.measure_first_sound", "first_sound"),
        ("gpu.save_plots", "docs"),
    ],
)
def test_a_part_that_fails_is_noted_and_the_rest_goes_on(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, table: str
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a sticky error")

    monkeypatch.setattr(broken, fail)
    monkeypatch.setattr(gpu, "find_spec", lambda name: True)
    path = tmp_path / "r.json"
    content = gpu.measure_all(plan(device, tables=(table, "docs"), docs_batch_sizes=(1,), repeats=1), path)
    assert content["failed"] and all("RuntimeError: a sticky error" in part["error"] for part in content["failed"][:1])
    assert len(content["docs"]) == 2 and json.loads(path.read_text()) == content
    assert content["machine"]["device"] == str(device) and content["versions"]["torch"] == torch.__version__


def test_what_is_not_installed_is_named(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_generate, "find_spec", lambda name: None)
    content = gpu.measure_all(plan(device, tables=("variants",), seconds=-1), tmp_path / "r.json")
    assert "generate: tiny, float16, 1, stock, flash_attention_2: flash-attn is not installed" in content["left_out"]
    assert content["left_out"][-1] == "plots: : matplotlib is not installed" and not content["failed"]


def test_the_parity_tests_are_part_of_the_results(device: torch.device, tmp_path: Path) -> None:
    junit = tmp_path / "parity.xml"
    assert "error" in gpu_results.parity_outcomes(junit)
    junit.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><failure/></testcase>'
        '<testcase classname="b" name="z"><skipped/></testcase></testsuite></testsuites>'
    )
    content = gpu_results.Results(tmp_path / "r.json", plan(device), junit).content
    assert content["parity_tests"] == {"passed": 1, "skipped": 1, "failed": ["a::y"]}


def test_a_tree_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARK_ACCEL_COMMIT", "abc123")
    monkeypatch.setattr(measure, "_git", mock.Mock(side_effect=OSError))
    assert measure.commit() == "abc123"


def test_a_failure_is_a_row_and_the_rest_goes_on(device: torch.device, tmp_path: Path) -> None:
    results = gpu_results.Results(tmp_path / "r.json", plan(device))

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
    if find_spec("matplotlib"):
        assert len(gpu_plots.save_plots(results.content, tmp_path / "r.json")) == 2
