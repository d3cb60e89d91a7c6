"""What `benchmarks/gpu` measures, on the CPU with the small Bark: every line runs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.bark_models import SMALL, build

from bark_accel.bench import measure
from benchmarks.gpu import generate as gpu_generate
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import plots as gpu_plots
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import rows as gpu_rows

DRY = gpu_plan.DRY
STEPS = {f"{ops}_{how}" for ops in ("native", "torch") for how in ("eager_ms", "graph_ms", "capture_s")}
STAGES = {"semantic", "coarse", "fine", "codec"}


@pytest.fixture
def report(tmp_path: Path) -> gpu_report.Report:
    return gpu_report.Report(tmp_path / "results" / "dry.json", DRY, {})


def run(report: gpu_report.Report, *jobs: gpu_plan.Job, seconds: float = 600) -> dict[str, Any]:
    for job in jobs:
        gpu_rows.measure(job, DRY, seconds, report.receive)
    assert json.loads(report.path.read_text()) == report.content
    return report.content


def jobs_of(*tables: str) -> list[gpu_plan.Job]:
    return gpu_plan.table_jobs(DRY, tables)


def test_every_row_is_measured_and_written(captured: None, report: gpu_report.Report) -> None:
    content = run(report, gpu_plan.machine_job(DRY), gpu_plan.smoke_job(DRY), *gpu_plan.table_jobs(DRY))
    assert not content["failed"] and not content["left_out_for_lack_of_time"]
    assert content["versions"]["torch"] == torch.__version__ and content["read_bandwidth_bytes_per_s"] > 0
    assert [row["name"] for row in content["smoke"]] == ["stock", *gpu_generate.SMOKE]
    by_dtype = ["stock", "stock", *gpu_generate.OURS, *gpu_generate.OURS]
    offload = ["bark_accel, offload"] if find_spec("accelerate") else []
    assert [row["name"] for row in content["generate"]] == [*by_dtype, *by_dtype, "stock, static", *offload]
    assert all(row["stage_s"].keys() == row["warm_up_s"].keys() - {"all"} == STAGES for row in content["generate"])
    exact = [row for row in content["generate"] + content["smoke"] if "token_differences" in row]
    assert len(exact) == 2 * 3 + 2 and not any(row["token_differences"] for row in exact)
    ours = [row for row in content["generate"] if "capture_s" in row]
    assert all(len(row["capture_s"]) == row["captured_graphs"] for row in ours)
    assert {row["name"] for row in ours if row["capture_s"]} == gpu_generate.OURS.keys() - {"bark_accel, eager"}
    assert not any(row["not_captured"] for row in ours)
    assert len(content["decode_step"]) == 4 * 2
    assert all(row.keys() >= STEPS and row["bytes_read"] > 0 for row in content["decode_step"])
    assert [row["policy"] for row in content["first_sound"]] == list(gpu_generate.POLICIES)
    assert all(row["last_sound_s"] > 0 < row["last_sound_in_turn_s"] for row in content["first_sound"])
    (warm,) = content["warmup"]
    assert warm["warmup_s"] > 0 and warm["captures"][0] > 0 == warm["captures"][2] and warm["decode_step"]
    assert [(row["rows"], row["audio_s_per_s"] > 0) for row in content["engine"]] == [(1, True), (2, True)]
    docs = [(row["name"], row["batch_size"], row["utterances_per_s"] > 0) for row in content["docs"]]
    assert docs == [(name, rows, True) for name in ("stock", "bark_accel, graphs") for rows in (1, 3)]
    if find_spec("matplotlib"):
        pictures = gpu_plots.save_plots(content, report.path)
        assert len(pictures) == 2 and all(picture.stat().st_size > 1000 for picture in pictures)


def test_the_kernels_of_a_step_add_up(report: gpu_report.Report) -> None:
    content = run(report, *jobs_of("kernels"))
    assert [row["batch_size"] for row in content["kernels"]] == [1, 2]
    for row in content["kernels"]:
        assert any("decode_step" in kernel["kernel"] for kernel in row["kernels"])
        assert 0 < sum(kernel["us_per_step"] for kernel in row["kernels"]) <= row["us_per_step"] * 1.001
        assert row["launches_per_step"] >= len(row["kernels"])
    assert [row["name"] for row in content["launches"]] == ["stock", *gpu_profile.COUNTED]
    for row in content["launches"]:
        assert row["stages"].keys() == STAGES and row["tokens_of_a_row"] == {"semantic": 4, "coarse": 16}
        assert row["kernels_per_token"]["semantic"] == row["stages"]["semantic"]["kernels"] / 4
    stock, ours = (row["kernels_per_token"]["coarse"] for row in content["launches"][:2])
    assert ours < stock / 2


def test_kernel_names_are_short() -> None:
    ours = "void bark_accel::cuda::entry<bark_accel::cuda::Gemv<bark_accel::Half, 1> >(bark_accel::cuda::GemvParams)"
    assert gpu_profile.short_name(ours) == "Gemv<Half, 1> "
    torchs = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<long>>(int, long)"
    assert gpu_profile.short_name(torchs) == "vectorized_elementwise_kernel<4, FillFunctor<long>>"


def test_what_there_is_no_time_for_is_named(report: gpu_report.Report) -> None:
    content = run(report, *jobs_of("generate", "docs"), seconds=-1)
    late = content["left_out_for_lack_of_time"]
    assert not content["generate"] and not content["failed"]
    assert {"generate: small_bark, float32, 1, stock", "docs: small_bark, float16, 3, 12, stock"} < set(late)


def test_what_is_not_installed_is_named(report: gpu_report.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.variants.find_spec", lambda name: None)
    content = run(report, *jobs_of("variants"))
    named = "generate: small_bark, float16, 1, stock, flash_attention_2: flash-attn is not installed"
    assert content["left_out"][0] == named and not content["failed"]


def test_a_failure_is_a_row_and_the_rest_goes_on(report: gpu_report.Report) -> None:
    rows = gpu_rows.Rows(DRY, 600, report.receive)
    rows.add("generate", {"name": "a"}, mock.Mock(side_effect=RuntimeError("out of memory")))
    rows.add("generate", {"name": "b"}, lambda: {"median_s": float("nan")})
    rows.add("generate", {"name": "c"}, lambda: {"median_s": 1.0})
    content = json.loads(report.path.read_text())
    errors = [row.get("error") for row in content["generate"]]
    assert errors[0] == "RuntimeError: out of memory" and "ValueError" in errors[1] and errors[2] is None
    assert [part["what"] for part in content["failed"]] == ["generate: a", "generate: b"]


def test_a_lost_device_ends_its_process(report: gpu_report.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every later call fails: stock's too, which would look like stock's fault."""
    monkeypatch.setattr(torch.cuda, "synchronize", mock.Mock(side_effect=RuntimeError("an illegal memory access")))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", mock.Mock())
    rows = gpu_rows.Rows(gpu_plan.Plan(), 600, report.receive)
    with pytest.raises(RuntimeError, match="lost to this process: an illegal"):
        rows.add("generate", {"name": "a"}, mock.Mock(side_effect=RuntimeError("an illegal memory access")))
    assert len(report.content["generate"]) == 1


def test_a_fallback_is_an_error_without_strict() -> None:
    """`strict=True` would resolve every stage twice in each timed call."""
    model = build(SMALL)
    model.coarse_acoustics.layers[0].register_forward_hook(lambda *_: None)
    inputs = gpu_generate.batch_of(DRY, model, 1)
    with pytest.raises(RuntimeError, match="fell back to Transformers' own code: coarse"), gpu_rows.accelerated(model):
        model.generate(**inputs, semantic_max_new_tokens=4)
    assert "generate" not in vars(model)
    with mock.patch.object(gpu_rows, "accelerate_bark", wraps=gpu_rows.accelerate_bark) as used:
        with gpu_rows.accelerated(build(SMALL)):
            pass
        assert not used.call_args.kwargs.get("strict")


def test_what_could_not_be_captured_is_a_failure_with_a_row(report: gpu_report.Report) -> None:
    rows = gpu_rows.Rows(DRY, 600, report.receive)
    rows.add("generate", {"name": "a"}, lambda: {"median_s": 1.0, "not_captured": ["the window: not permitted"]})
    assert report.content["generate"][0]["median_s"] == 1.0
    assert report.content["failed"] == [{"what": "generate: a, a capture", "error": "the window: not permitted"}]


def test_a_file_is_replaced_whole(report: gpu_report.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of writing, a run leaves what it had written before."""
    before = report.path.read_text()
    write = Path.write_text

    def half(path: Path, text: str) -> None:
        write(path, text[: len(text) // 2])
        raise OSError("killed")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="killed"):
        report.receive(("left_out", "something"))
    assert report.path.read_text() == before


def test_the_outcomes_of_tests_are_part_of_the_results(report: gpu_report.Report, tmp_path: Path) -> None:
    junit = tmp_path / "parity.xml"
    assert "error" in report.add_tests("kernel tests", junit)
    junit.write_text("<testsuites><testsui")
    assert "error" in report.add_tests("kernel tests", junit)
    junit.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><failure/></testcase>'
        '<testcase classname="b" name="z"><skipped/></testcase></testsuite></testsuites>'
    )
    outcomes = {"passed": 1, "skipped": 1, "failed": ["a::y"]}
    assert report.add_tests("other tests", junit) == report.content["tests"]["other tests"] == outcomes
    whats = [part["what"] for part in report.content["failed"]]
    assert whats == ["kernel tests", "kernel tests", "other tests: a::y"]


def test_a_tree_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARK_ACCEL_COMMIT", "abc123")
    monkeypatch.setattr(measure, "_git", mock.Mock(side_effect=OSError))
    assert measure.commit() == "abc123"
