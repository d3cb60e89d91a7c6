"""A run of `python -m benchmarks gpu` is over in time and says what failed, whatever crashes, hangs or is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.waiting import LIMIT_S, until

from benchmarks.gpu import generate as gpu_generate
from benchmarks.gpu import limits as gpu_limits
from benchmarks.gpu import run as gpu
from benchmarks.gpu import stages as gpu_stages
from benchmarks.gpu import variants as gpu_variants
from benchmarks.gpu.plan import DRY, ROUNDS, Plan, table_jobs
from benchmarks.gpu.report import Report, find_gpu
from benchmarks.gpu.rows import Rows

ROOT = Path(__file__).resolve().parents[2]
ONE_PASSES = "def test_a():\n    pass\n"
ONE_FAILS = "def test_b():\n    pass\n\ndef test_c():\n    assert False\n\ndef test_d():\n    pass\n"


def runs(text: str) -> bool:
    """Whether a process with `text` in its command is there; a test's own folder is in nobody else's."""
    return text in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_crash_and_a_hang_cost_their_tables_only(tmp_path: Path) -> None:
    """The whole of it, with tiny models on the CPU, a failing kernel test, a crash and a hang."""
    (tmp_path / "test_kernel.py").write_text(ONE_FAILS)
    (tmp_path / "test_other.py").write_text(ONE_PASSES)
    command = [sys.executable, str(Path(__file__).with_name("planted_run.py")), "run", "--device", "cpu", "--prebuilt"]
    command += ["--seconds", "2000", "--tests-seconds", "200", "--kernel-tests", str(tmp_path / "test_kernel.py")]
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--other-tests", str(tmp_path / "test_other.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2100,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    content = json.loads((tmp_path / "out" / "dry_cpu.json").read_text())
    failed = {part["what"]: part["error"] for part in content["failed"]}
    crash, hang = "decode_step, small_bark, float32", "first_sound, small_bark, float16"
    kernel_tests = {name for name in failed if name.startswith("kernel tests")}
    others = {name for name in failed if name.startswith("other tests")}
    assert failed.keys() - kernel_tests - others == {
        f"{crash}: decode_step: small_bark, the crash",
        f"{hang}: first_sound: small_bark, the hang",
    }
    assert failed[f"{crash}: decode_step: small_bark, the crash"] == "killed by SIGABRT"
    assert failed[f"{hang}: first_sound: small_bark, the hang"].startswith("cut off after")
    assert [row["name"] for row in content["decode_step"]] == ["before the crash"]
    assert [row["policy"] for row in content["first_sound"]] == ["before the hang"]
    rows = {table: len(content[table]) for table in ("smoke", "generate", "kernels", "launches", "docs")}
    generate = 21 + (find_spec("accelerate") is not None)
    assert rows == {"smoke": 4, "generate": generate, "kernels": 2, "launches": 3, "docs": 4}
    names = [stage["name"].partition(",")[0] for stage in content["stages"]]
    tables = ["generate", *(table for tables in ROUNDS for table in tables)]
    assert names == ["library", "kernel tests", "machine", "smoke", *tables, "plots", "other tests"]
    # The kernels' ended with the first failure, and ran again to the end with the others.
    assert (content["tests"]["kernel tests"]["passed"], content["tests"]["other tests"]["passed"]) == (1, 3)
    log = (tmp_path / "out" / "dry_cpu.log").read_text()
    # The line of the crash may hold one of another process.
    assert all(part in log for part in ("Fatal Python error", "Aborted", "planted_run.py", "test_c"))
    # No more than the machine sends back, and nobody left of those who hung.
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert not runs(str(tmp_path))


def test_a_command_ends_in_time_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.fork(); print('x'); time.sleep(6000)"
    monkeypatch.setattr(gpu_limits, "GRACE_S", 0.5)
    assert gpu_limits.run_command([sys.executable, "-c", deaf, str(tmp_path)], 1).startswith("cut off after")
    assert not runs(str(tmp_path))
    assert gpu_limits.run_command([sys.executable, "-c", "raise SystemExit(3)"], 60) == "exit status 3"
    assert gpu_limits.run_command(["/no/such/program"], 60).startswith("FileNotFoundError")
    assert gpu_limits.run_command(["sh", "-c", "kill -9 $$"], 60) == "killed by SIGKILL"


@pytest.mark.parametrize("name, status", [("SIGALRM", 124), ("SIGTERM", 143)])
def test_nothing_outlives_the_end(tmp_path: Path, name: str, status: int) -> None:
    """A wait that no limit knows of, and a run that is told to stop, end with a whole file and without children."""
    script = (
        "import sys\n"
        "from benchmarks.gpu import limits, run, stages\n"
        "wait = [sys.executable, '-c', 'import time; time.sleep(6000)', sys.argv[-1]]\n"
        "stages.Stages.build = lambda self: limits.run_command(wait, 6000) == 'ok'\n"
        "sys.exit(run.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "build", "--device", "cpu"]
    command += ["--seconds", "3" if name == "SIGALRM" else "3000", "--directory", str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        if name == "SIGTERM":
            until(lambda: runs(f"time.sleep(6000) {tmp_path}"), every_s=0.05)
            process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == status
    content = json.loads((tmp_path / "dry_cpu_build.json").read_text())
    assert [part["what"] for part in content["failed"]] == ["run"]
    assert not runs(str(tmp_path))


@pytest.mark.parametrize("capability, asked, built", [("9.0", None, "90"), ("9.0", "80", None), ("12.1", None, None)])
def test_the_build_is_for_the_gpu_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, asked: str | None, built: str | None
) -> None:
    monkeypatch.delenv("BARK_ACCEL_CUDA_ARCHS", raising=False)
    if asked is not None:
        monkeypatch.setenv("BARK_ACCEL_CUDA_ARCHS", asked)
    said = mock.Mock(stdout=f"NVIDIA H200, 580.65.06, {capability}\nNVIDIA H200, 580.65.06, {capability}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    gpu_found, commands = find_gpu(), Commands()
    assert gpu_found == {"gpu": "NVIDIA H200", "driver": "580.65.06", "capability": capability}
    assert stages(tmp_path, monkeypatch, commands, gpu_found=gpu_found).build()
    assert commands.environments[0].get("BARK_ACCEL_CUDA_ARCHS") == built
    assert (
        f"CUDA_ARCHS = ({', '.join(f'{chr(34)}{arch}{chr(34)}' for arch in gpu_stages.ARCHS)})"
        in (ROOT / "setup.py").read_text()
    )


def test_the_build_is_for_all_where_gpus_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device cuda:1` may be the other."""
    monkeypatch.delenv("BARK_ACCEL_CUDA_ARCHS", raising=False)
    said = mock.Mock(stdout="NVIDIA H200, 580.65.06, 9.0\nNVIDIA T4, 580.65.06, 7.5\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    gpu_found, commands = find_gpu(), Commands()
    assert gpu_found["gpu"] == "NVIDIA H200" and gpu_found["capability"] == "7.5, 9.0"
    assert stages(tmp_path, monkeypatch, commands, gpu_found=gpu_found).build()
    assert "BARK_ACCEL_CUDA_ARCHS" not in commands.environments[0]
    said.stdout = "No devices were found\n"
    assert find_gpu() == {}


def test_at_least_one_sample_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(["run", "--samples", "0"])
    assert "argument --samples: expected at least 1, got 0" in capsys.readouterr().err


class Commands:
    """Stands in for `gpu_limits.run_command`; a command that holds one of the given words fails."""

    def __init__(self, *failing: str):
        self.ran: list[str] = []
        self.environments: list[dict[str, str]] = []
        self._failing = failing

    def __call__(self, command: list[str], limit_s: float, environment: dict[str, str], *_: Any) -> str:
        self.ran.append(" ".join(command))
        self.environments.append(environment)
        return "exit status 1" if any(word in self.ran[-1] for word in self._failing) else "ok"


def stages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commands: Commands,
    *options: str,
    gpu_found: dict[str, str] | None = None,
) -> gpu_stages.Stages:
    monkeypatch.setattr(gpu_limits, "run_command", commands)
    monkeypatch.setattr(gpu_limits, "start_server", lambda: None)
    plan = Plan()
    return gpu_stages.Stages(gpu.parse(["run", *options]), plan, Report(tmp_path / "r.json", plan, gpu_found or {}), [])


def test_a_prebuilt_library_is_used_if_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    assert stages(tmp_path, monkeypatch, commands, "--prebuilt").build()
    assert len(commands.ran) == 1 and "cuda_archs() is None" in commands.ran[0]
    commands = Commands("cuda_archs")
    assert stages(tmp_path, monkeypatch, commands, "--prebuilt", "--jobs", "7").build()
    assert "setup.py build_ext --inplace" in commands.ran[1]
    assert commands.environments[1].items() >= {"BARK_ACCEL_CUDA": "1", "MAX_JOBS": "7"}.items()
    failed = json.loads((tmp_path / "r.json").read_text())["failed"]
    assert [part["what"] for part in failed] == ["library"]
    assert not stages(tmp_path, monkeypatch, Commands("setup.py")).build()


def test_processes_start_anew_where_forked_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run_job = [], gpu_limits.run_job

    def failing_when_forked(job: Any, plan: Any, limit_s: float, on_message: Any) -> str:
        ran.append((job.table, gpu_limits._context.get_start_method()))
        if ran[-1][1] == "forkserver":
            return "exit status 1"
        return run_job(job, DRY, limit_s, on_message) if job.table == "machine" else "ok"

    monkeypatch.setattr(gpu_limits, "_context", gpu_limits._context)
    monkeypatch.setattr(gpu_limits, "run_job", failing_when_forked)
    assert stages(tmp_path, monkeypatch, Commands()).smoke()
    assert ran == [("machine", "forkserver"), ("machine", "spawn"), ("smoke", "spawn")]
    content = json.loads((tmp_path / "r.json").read_text())
    assert "torch" in content["versions"] and len(content["failed"]) == 1


def test_what_is_imported_before_a_fork_touches_no_device() -> None:
    script = (
        "import torch\n"
        "def touch(*_): raise AssertionError('touched')\n"
        "for name in ('is_available', 'device_count', 'get_device_capability', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, touch)\n"
        "from benchmarks.gpu import limits\n"
        "for name in limits.PRELOADED: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_sanitizer_looks_for_races_in_our_kernels_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for knows, option in (("--kernel-name {key1=val1}", "--kernel-name"), ("--kernel-regex ...", "--kernel-regex")):
        commands = Commands()
        monkeypatch.setattr(gpu_stages, "help_of", lambda tool, knows=knows: knows)
        assert stages(tmp_path, monkeypatch, commands).sanitize()
        memcheck, racecheck = commands.ran
        assert "--tool memcheck" in memcheck and "kns=" not in memcheck
        assert f"--tool racecheck {option} kns=bark_accel " in racecheck
        assert all(given["BARK_ACCEL_TEST_SEEDS"] == "1" for given in commands.environments)


def test_every_table_has_a_process_and_stock_is_compiled_early() -> None:
    jobs = table_jobs(Plan())
    first = [(job.table, job.shape) for job in jobs][:4]
    assert first == [(table, "bark-small") for table in ("generate", "generate", "static", "decode_step")]
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 9
    assert [job.name for job in table_jobs(DRY, ("docs",))] == ["docs, small_bark, float16"]


def test_the_part_that_keeps_the_time_does_not_import_torch() -> None:
    """It could hang there before any limit holds, and would be there twice in memory."""
    script = "import sys, benchmarks.__main__, benchmarks.gpu.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_results_lie_where_out_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", "/some/where")
    assert gpu.parse(["run"]).directory == Path("/some/where")
    monkeypatch.delenv("OUT")
    assert gpu.parse(["run"]).directory == ROOT / "benchmarks" / "results"
    names = {gpu.file_name(gpu.parse([c, *t]), "H100 80GB") for c in gpu.COMMANDS for t in ([], ["--tables", "docs"])}
    assert len(names) == 2 * len(gpu.COMMANDS) and "cuda_h100_80gb" in names


def test_samples_are_taken_of_stock_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a compiled static cache, which counts as a failure where nothing was compiled."""
    plan = replace(DRY, repeats=3, stock_repeats=3)
    taken: list[int] = []

    def generate(plan: Plan, model: Any, size: int, repeats: int, *_: Any, **__: Any) -> dict[str, Any]:
        taken.append(repeats)
        return {}

    monkeypatch.setattr(gpu_generate, "build_model", lambda *_: None)
    monkeypatch.setattr(gpu_generate, "generate", generate)
    monkeypatch.setattr(gpu_generate, "ours", lambda *_: {})
    monkeypatch.setattr(gpu_variants, "generate", generate)
    job = table_jobs(plan, ("generate",))[0]
    gpu_generate.measure_generations(plan, Rows(plan, 60, lambda message: None), job)
    assert taken == [3, 3] and job.limit_s > table_jobs(DRY, ("generate",))[0].limit_s
    on_gpu = replace(plan, device="cuda:0")
    assert not gpu_variants.static(plan, None)["not_captured"] and gpu_variants.static(on_gpu, None)["not_captured"]
    assert taken == [3] * 4
