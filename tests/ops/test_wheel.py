"""What the compiled library asks of the system: nothing that ties it to a Python, a torch or a recent Linux."""

import os
import platform
import re
import shutil
import subprocess

import pytest

from bark_accel.ops import _library

pytestmark = pytest.mark.skipif(
    shutil.which("objdump") is None or platform.system() != "Linux", reason="needs objdump and an ELF library"
)
# Of manylinux_2_28: AlmaLinux 8.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
FROM_TORCH = re.compile(r"aoti_torch_\w+|torch_\w+")
# Another library than the one in use: .ci/cuda_check names the one that it has linked for older systems.
LINKED = os.environ.get("BARK_ACCEL_TESTED_LIBRARY")
FROM_OPENMP = re.compile(r"GOMP_\w+|omp_\w+|__kmpc_\w+")


def dump(option: str) -> str:
    """Say what `objdump` says of the library."""
    command = ["objdump", option, LINKED or _library.load().file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined() -> list[tuple[str, str]]:
    """(version or "", name) of each symbol that others have to bring."""
    text = subprocess.run(
        ["objdump", "-T", LINKED or _library.load().file], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in text.splitlines() if "*UND*" in line]
    return [(row[-2].strip("()") if "_" in row[-2] else "", row[-1]) for row in rows if row[1] != "w"]


@pytest.mark.skipif(
    LINKED is None and _library.cuda_archs() is not None, reason="the static CUDA runtime takes the builder's glibc"
)
def test_no_symbol_is_newer_than_the_wheels_tag() -> None:
    versions = {version for version, _ in undefined() if version}
    assert versions
    for version in versions:
        library, _, number = version.partition("_")
        assert tuple(map(int, number.split("."))) <= NEWEST[library], version


def test_torch_is_called_through_its_stable_interface_alone() -> None:
    names = {name for version, name in undefined() if not version}
    assert "torch_call_dispatcher" in names and names & {"GOMP_parallel", "__kmpc_fork_call"}, "by GCC or by clang"
    assert not [name for name in names if not (FROM_TORCH.fullmatch(name) or FROM_OPENMP.fullmatch(name))]


def test_libraries_it_is_linked_with() -> None:
    text = subprocess.run(
        ["objdump", "-p", LINKED or _library.load().file], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"NEEDED +(\S+)", text))
    system = {"libstdc++", "libm", "libgcc_s", "libc", "libdl", "libpthread", "librt", "ld-linux-x86-64"}
    assert {name.partition(".so")[0] for name in needed} <= {"libtorch_cpu", *system}
