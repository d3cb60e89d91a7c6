"""The CPU kernels under sanitizers: `cpu_kernels.cpp` calls them on exact buffers and compares with float64.

`make sanitize` (BARK_ACCEL_SANITIZE=all) takes every instruction set and all seeds, the normal tests a small part:
the best instruction set of this CPU, without optimisation, an eighth of the seeds.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from bark_accel.ops import _library

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SOURCES = ROOT / "csrc" / "cpu"
ALL = os.environ.get("BARK_ACCEL_SANITIZE") == "all"
ISAS = _library.load().available_isas() if ALL else _library.load().available_isas()[-1:]
BRIEF = [] if ALL else ["--brief"]
OPTIMISE = "-O1" if ALL else "-O0"
SANITIZERS = {"address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "thread": ["-fsanitize=thread"]}

BARRIER_MUTANTS = [
    ("phase_.store(phase + 1, std::memory_order_release)", "phase_.store(phase + 1, std::memory_order_relaxed)"),
    ("arrived_.fetch_add(1, std::memory_order_acq_rel)", "arrived_.fetch_add(1, std::memory_order_relaxed)"),
    ("phase_.load(std::memory_order_acquire) == phase", "phase_.load(std::memory_order_relaxed) == phase"),
]
"""Text of barrier.cpp and what to put in its place: each lets a thread go on without seeing the others' writes."""


def compile_(*arguments: object) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "expected a C++ compiler (g++ or c++) on the PATH"
    subprocess.run([compiler, "-std=c++17", "-g1", *map(str, arguments)], check=True)


class Build:
    """The objects of one sanitizer; the kernels with the flags of setup.py."""

    def __init__(self, sanitizer: str, folder: Path):
        self._folder, self._flags = folder, SANITIZERS[sanitizer]
        with mock.patch("setuptools.setup"):
            setup = runpy.run_path(str(ROOT / "setup.py"))
        self._objects = [folder / f"{isa}.o" for isa in ISAS]
        for isa, to in zip(ISAS, self._objects, strict=True):
            flags = [*setup["KERNEL_FLAGS"], *setup["ISA_FLAGS"][isa], *self._flags]
            compile_(OPTIMISE, *flags, "-c", SOURCES / f"isa_{isa}.cpp", "-o", to)
        tables = ",".join(f"&{isa}_kernels()" for isa in ISAS)
        self._objects.append(folder / "cpu_kernels.o")
        x86 = ["-DBARK_ACCEL_X86"] if setup["X86"] else []
        flags = [*x86, *self._flags, f"-DBARK_KERNELS={tables}", f"-I{ROOT / 'csrc' / 'cuda'}", "-Wno-unknown-pragmas"]
        compile_("-O0", *flags, "-c", HERE / "cpu_kernels.cpp", "-o", self._objects[-1])
        self.program = self.link(SOURCES / "barrier.cpp")

    def link(self, barrier: Path) -> Path:
        program = self._folder / barrier.stem
        compile_("-O1", *self._flags, f"-I{SOURCES}", barrier, *self._objects, "-pthread", "-o", program)
        return program


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build("address", tmp_path_factory.mktemp("address"))


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build("thread", tmp_path_factory.mktemp("thread"))


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Without the user's own options of the sanitizers; a race ends the program."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("SAN_OPTIONS")}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=3000, check=False, env=environment
    )


def test_address_and_undefined_behaviour(address: Build) -> None:
    done = run(address.program, *BRIEF)
    assert done.returncode == 0, done.stderr[-5000:]


def test_a_buffer_that_lacks_one_element_is_noticed(address: Build) -> None:
    """What the kernels read and write ends where it should, and AddressSanitizer would see it if it did not."""
    done = run(address.program, "--short", "1" if ALL else "17")
    assert done.returncode == 0, done.stderr[-5000:]


def test_threads(thread: Build) -> None:
    done = run(thread.program, *BRIEF)
    assert done.returncode == 0, done.stderr[-5000:]


def test_threads_without_a_barrier_are_noticed(thread: Build) -> None:
    done = run(thread.program, "--no-barrier")
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr


# By emulated machine: how much longer all steps may take than on the best number of threads, and the last sizes.
TEAMS = {
    "two quiet cores": (1.02, {2}),
    "a busy neighbour": (1.2, {1, 2}),
    "two busy neighbours": (1.15, {1, 2}),
    "64 cores, memory full with 8": (1.05, {8}),
    "64 cores, cheap barriers": (1.1, {64}),
    "6 fast and 8 slow cores": (1.05, {6}),
    "a quota of two, not seen": (1.1, {2}),
    "one core": (1.05, {1}),
}


def test_teams_of_other_machines(tmp_path: Path) -> None:
    """The search for a team's size soon finds the best one, on many cores, slow ones and beside others, and stays."""
    program = tmp_path / "teams"
    compile_("-O1", HERE / "team_tuner.cpp", SOURCES / "team_tuner.cpp", "-o", program)
    lines = run(program).stdout.splitlines()
    assert len(lines) == 8 * len(TEAMS)
    for line in lines:
        name, _, took, _, size = line.split(";")
        longest, sizes = TEAMS[name]
        assert float(took) <= longest and int(size) in sizes, line


@pytest.mark.parametrize("old, new", BARRIER_MUTANTS)
def test_a_barrier_without_order_is_noticed(thread: Build, tmp_path: Path, old: str, new: str) -> None:
    text = (SOURCES / "barrier.cpp").read_text()
    assert text.count(old) == 1, f"expected {old!r} once in barrier.cpp"
    mutated = tmp_path / "mutant.cpp"
    mutated.write_text(text.replace(old, new))
    done = run(thread.link(mutated))
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr
