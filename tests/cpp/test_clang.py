"""The extension compiled by clang, as on macOS: its syntax, and with BARK_ACCEL_CLANG=all (`make clang`) all of it.

The whole library then runs the tests of the ops, the kernels those of their own on an emulated aarch64. Skipped where
there is no clang++.
"""

from __future__ import annotations

import ctypes.util
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from test_other_cpus import run_kernels
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ is not installed")
WHOLE = os.environ.get("BARK_ACCEL_CLANG") == "all"
whole = pytest.mark.skipif(not WHOLE, reason="BARK_ACCEL_CLANG=all (`make clang`) builds and tests all of it")
TARGETS = {
    "here": ["-fopenmp"],
    "one thread": [],
    # Headers of macOS are not here; those of Linux on the same processor are.
    "aarch64": ["--target=aarch64-linux-gnu"],
}


@pytest.fixture
def setup(monkeypatch):
    """What setup.py decides where clang is the compiler."""
    monkeypatch.setenv("CXX", "clang++")
    with mock.patch("setuptools.setup") as call:
        flags = runpy.run_path(str(ROOT / "setup.py"))
    assert flags["CLANG"]
    return {**flags, "extension": call.call_args.kwargs["ext_modules"][0]}


@pytest.mark.parametrize("target", TARGETS)
def test_every_source_is_understood(setup, target):
    """Without a word of warning."""
    if target == "aarch64" and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("the headers of aarch64 are not installed (Debian: g++-aarch64-linux-gnu)")
    system = [f"-isystem{path}" for path in include_paths()]
    version = f"-DTORCH_TARGET_VERSION={setup['OLDEST_TORCH']}"
    machine = ["-DBARK_ACCEL_ARM=1"] if target == "aarch64" else ["-DBARK_ACCEL_X86=1"] if setup["X86"] else []
    ours = [source for source in setup["extension"].sources if "cuda" not in source]
    jobs = [[source, *TARGETS[target], *machine, version, *system] for source in ours]
    isas = {"aarch64": setup["ARM_FLAGS"], "here": setup["ISA_FLAGS"]}.get(target, {}) | {"generic": []}
    jobs += [[f"csrc/cpu/isa_{isa}.cpp", *TARGETS[target], *setup["KERNEL_FLAGS"], *isas[isa]] for isa in isas]
    assert len(jobs) > 12

    def check(job: list[str]) -> str:
        command = ["clang++", *setup["OPTIMISE"], "-fsyntax-only", "-Werror", *job]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stderr

    with ThreadPoolExecutor(2) as pool:
        assert not "".join(pool.map(check, jobs))


@whole
def test_the_whole_library_passes_the_tests_of_the_ops(tmp_path):
    """With one OpenMP runtime in the process, clang's own, as on macOS."""
    libomp = ctypes.util.find_library("omp") or ctypes.util.find_library("omp5")
    if libomp is None:
        pytest.skip("libomp is not installed (Debian: libomp-dev)")
    package = shutil.copytree(
        ROOT / "bark_accel", tmp_path / "bark_accel", ignore=shutil.ignore_patterns("_C.so", "__pycache__")
    )
    clang = {**os.environ, "CC": "clang", "CXX": "clang++"}
    built = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", tmp_path / "tmp", "--build-lib", tmp_path]
    subprocess.run(built, cwd=ROOT, env=clang, check=True)
    # No kernel of Linux's own runtime takes part.
    env = {**os.environ, "LD_PRELOAD": libomp, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "2"}
    told = "from bark_accel.ops._library import load; l = load(); print(l.file, l.build_info(), l.has_threads())"
    said = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert str(package) in said.stdout and "Clang" in said.stdout and said.stdout.endswith("True\n")
    # What GCC makes of the kernels is no matter here.
    tests = [ROOT / "tests/ops", "--ignore", ROOT / "tests/ops/test_disassembly.py", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=tmp_path, env=env, check=True)


@whole
@pytest.mark.parametrize("isa", ["generic", "neon_dotprod"])
def test_kernels_on_aarch64(setup, isa, tmp_path):
    run_kernels(["clang++", "--target=aarch64-linux-gnu"], ["qemu-aarch64"], isa, setup, tmp_path)
