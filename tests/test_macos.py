"""What can be known here of a build and a run on macOS: setup.py's flags, guards around what Linux alone has."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[1]
SOURCES = [p for p in sorted((ROOT / "csrc").rglob("*.*")) if "cuda" not in p.relative_to(ROOT / "csrc").parts[:1]]
# Headers of standard C++; all others, and these functions, need an #if around them.
STANDARD = """algorithm array atomic chrono climits cmath cstddef cstdint cstdlib cstring functional initializer_list
    iterator limits map memory mutex new numeric optional ostream sstream stdexcept string string_view thread tuple
    type_traits utility vector"""
SYSTEMS_OWN = re.compile(
    r"\b(malloc_trim|madvise|sched_\w+|pthread_\w+|memfd_create|syscall|prctl|get_nprocs|omp_\w+|__builtin_cpu_\w+|"
    r"__get_cpuid\w*|_mm_pause)\b"
)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs setup.py as on a Mac with Apple's processor; gives its globals, and the one extension."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "ARCHFLAGS", "BARK_ACCEL_LIBOMP", "BARK_ACCEL_CUDA"):
        monkeypatch.delenv(name, raising=False)

    def run():
        with mock.patch("setuptools.setup") as call:
            return runpy.run_path(str(ROOT / "setup.py")), call.call_args.kwargs["ext_modules"][0]

    yield run
    os.environ.pop("ARCHFLAGS", None)


@pytest.fixture
def libomp(tmp_path):
    """A prefix with the headers, as Homebrew has one."""
    prefix = tmp_path / "opt" / "libomp"
    (prefix / "include").mkdir(parents=True)
    (prefix / "include" / "omp.h").touch()
    return prefix


def test_a_build_with_libomp(build, libomp, monkeypatch):
    monkeypatch.setenv("BARK_ACCEL_LIBOMP", str(libomp))
    flags, extension = build()
    arguments = extension.extra_compile_args["cxx"]
    assert arguments[-3:] == ["-Xpreprocessor", "-fopenmp", f"-I{libomp / 'include'}"]
    assert not any("omp" in word for word in extension.extra_link_args), "the runtime is torch's"
    assert all(word.startswith("-Wl,-rpath,/") for word in extension.extra_link_args) and extension.extra_link_args
    assert flags["ISA_FLAGS"] == {"generic": [], "neon": [], "neon_dotprod": ["-march=armv8.2-a+dotprod"]}
    assert not any(word.startswith("-m") or "maybe" in word for word in [*arguments, *flags["KERNEL_FLAGS"]])
    assert "BARK_ACCEL_X86" not in dict(extension.define_macros) and extension.libraries == ["torch_cpu"]
    assert os.environ["ARCHFLAGS"] == "-arch arm64"
    command = flags["BuildWithIsas"](setuptools.Distribution())
    assert command.get_ext_filename("bark_accel._C") == os.path.join("bark_accel", "_C.so")


def test_homebrew_is_asked_for_its_prefix(build, libomp, tmp_path):
    brew = tmp_path / "brew"
    brew.write_text(f'#!/bin/sh\n[ "$1 $2" = "--prefix libomp" ] && echo {shlex.quote(str(libomp))}\n')
    brew.chmod(0o755)
    assert build()[0]["OPENMP"] == ["-Xpreprocessor", "-fopenmp", f"-I{libomp / 'include'}"]


@pytest.mark.parametrize("why", ["no headers", "not wanted", "torch without OpenMP"])
def test_one_thread_is_said_aloud(build, libomp, monkeypatch, capsys, why):
    if why != "no headers":
        monkeypatch.setenv("BARK_ACCEL_LIBOMP", "0" if why == "not wanted" else str(libomp))
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: why != "torch without OpenMP")
    flags, extension = build()
    assert flags["OPENMP"] == [] and "-fopenmp" not in extension.extra_compile_args["cxx"]
    word = "this torch has no OpenMP" if why == "torch without OpenMP" else "brew install libomp"
    assert "kernels of ONE THREAD" in (said := capsys.readouterr().out) and word in said


def test_a_wrong_prefix_stops_the_build(build, tmp_path, monkeypatch):
    monkeypatch.setenv("BARK_ACCEL_LIBOMP", str(tmp_path))
    with pytest.raises(SystemExit, match=r"BARK_ACCEL_LIBOMP: expected a folder with include/omp\.h, got"):
        build()


def test_the_report_says_that_there_is_one_thread(monkeypatch):
    from bark_accel.patches import step_kind
    from bark_accel.patches.stage_patch import Settings
    from bark_accel.report import FallbackLog

    library = mock.Mock(has_threads=lambda: False)
    monkeypatch.setattr(step_kind, "load", lambda: library)
    said = step_kind.step_kind(Settings("auto", FallbackLog(False)), torch.device("cpu"))
    assert said == "compiled kernels of one thread, built without OpenMP"


def unguarded(source: str) -> list[str]:
    """Lines outside of every #if that take what a system or a processor has of its own."""
    found, depth = [], 0
    for line in source.splitlines():
        code = line.split("//")[0]
        if re.match(r"\s*#\s*if", code):
            depth += 1
        elif re.match(r"\s*#\s*endif", code):
            depth -= 1
        header = re.match(r"\s*#\s*include <([^>]+)>", code)
        foreign = header and header[1] not in STANDARD.split() and not header[1].startswith("torch/")
        if depth == 0 and (foreign or SYSTEMS_OWN.search(code)):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_a_system_has_of_its_own_is_guarded(path):
    assert unguarded(path.read_text()) == []


@pytest.mark.parametrize("line", ["#include <sys/mman.h>", "  malloc_trim(0);", "#include <sched.h>"])
def test_the_guard_is_looked_for(line):
    assert (
        unguarded(line)
        and unguarded(f"#ifdef A\n#endif\n{line}")
        and not unguarded(f"#ifdef __linux__\n{line}\n#endif")
    )


# As far as Python tells: a Mac has none of these, and no /proc.
LIKE_A_MAC = """
import io, os, platform, sys
for name in ("sched_getaffinity", "sched_setaffinity", "memfd_create", "eventfd", "posix_fadvise", "pidfd_open",
             "posix_fallocate", "splice", "copy_file_range", "getrandom"):
    vars(os).pop(name, None)
real = io.open
def without_proc(file, *args, **kwargs):
    if str(file).startswith(("/proc/", "/sys/", "/dev/shm")):
        raise FileNotFoundError(2, "there is no such folder on macOS", str(file))
    return real(file, *args, **kwargs)
io.open = without_proc
import torch
from support.bark_models import SMALL, build, texts
from bark_accel import accelerate_bark, acceleration_report, free_memory, stream
from bark_accel.bench import check, measure
from bark_accel.ops.float32_choice import cpu_model
sys.platform, platform.system = "darwin", lambda: "Darwin"
import bark_accel.cli.app, bark_accel.server.app, bark_accel.longform.file_lock
model = accelerate_bark(build(SMALL))
model.generate(**texts(SMALL, [5]), semantic_max_new_tokens=10)
assert sum(chunk.shape[1] for chunk in stream(model, **texts(SMALL, [5]), semantic_max_new_tokens=10)) > 0
str(acceleration_report(model)), free_memory(model)
assert check._reset_peak(torch.device("cpu")) is None and measure.machine_facts()["cores"] >= 1
assert cpu_model() == (platform.processor() or platform.machine())
"""


def test_the_package_runs_without_what_linux_alone_has(tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", LIKE_A_MAC]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
