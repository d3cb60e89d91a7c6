"""The kernels on CPUs that are not here, emulated: aarch64, and x86-64 without AVX or AVX-512 (`make other-cpus`)."""

from __future__ import annotations

import platform
import runpy
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# The compiler, the emulator of qemu-user, and the instruction sets of setup.py that it has (it knows no AVX-VNNI).
CPUS = {
    "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64"], ("generic", "neon", "neon_dotprod")),
    "Nehalem": ("g++", ["qemu-x86_64", "-cpu", "Nehalem"], ("generic",)),
    "Haswell": ("g++", ["qemu-x86_64", "-cpu", "Haswell-v2"], ("avx2",)),
}


@pytest.mark.parametrize(("cpu", "isa"), [(cpu, isa) for cpu, (_, _, isas) in CPUS.items() for isa in isas])
def test_kernels(cpu: str, isa: str, tmp_path: Path) -> None:
    """As setup.py compiles them, against double precision."""
    compiler, emulator, _ = CPUS[cpu]
    missing = [tool for tool in (compiler, emulator[0]) if shutil.which(tool) is None]
    if cpu != "aarch64" and platform.machine() != "x86_64":
        missing.append("a compiler for it")
    if missing:
        pytest.skip(f"{cpu} needs {' and '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    with mock.patch("setuptools.setup"):
        setup = runpy.run_path(str(ROOT / "setup.py"))
    run_kernels([compiler], emulator, isa, setup, tmp_path)


def run_kernels(compiler: list[str], emulator: list[str], isa: str, setup: dict, tmp_path: Path) -> None:
    """Compile and run them with what setup.py decides."""
    kernels, checks, program = (tmp_path / name for name in ("kernels.o", "checks.o", "program"))
    flags = {"generic": [], **setup["X86_FLAGS"], **setup["ARM_FLAGS"]}[isa]

    def compile_(*arguments: object) -> None:
        subprocess.run([*compiler, "-std=c++17", *map(str, arguments)], check=True)

    compile_(*setup["OPTIMISE"], *setup["KERNEL_FLAGS"], *flags, "-c", ROOT / f"csrc/cpu/isa_{isa}.cpp", "-o", kernels)
    tables = ("-DBARK_ACCEL_ARM",) if isa in setup["ARM_FLAGS"] else ("-DBARK_ACCEL_X86",)
    defines = (*tables, f"-DBARK_KERNELS=&{isa}_kernels()", f"-I{ROOT / 'csrc/cuda'}", "-Wno-unknown-pragmas")
    compile_("-O0", *defines, "-c", HERE / "cpu_kernels.cpp", "-o", checks)
    compile_(ROOT / "csrc/cpu/barrier.cpp", kernels, checks, "-pthread", "-static", "-o", program)
    done = subprocess.run([*emulator, program, "--brief"], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0 and " 0 failures" in done.stdout + done.stderr, done.stderr[-5000:]
