"""What the compiler made of the CUDA kernels: reads the machine code of the built objects, no GPU needed.

`make cuda-check` builds them and runs this. cuobjdump comes with CUDA, or from PyPI (`nvidia-cuda-cuobjdump`).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
OBJECTS = Path(os.environ.get("BARK_ACCEL_CUDA_OBJECTS", ROOT / "build" / "cuda"))
DTYPES = ("float32", "float16", "bfloat16", "int8")
PRODUCTS = tuple(f"gemv_{dtype}" for dtype in DTYPES)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", re.MULTILINE)


def tool(name: str) -> str | None:
    """A program of CUDA: on the PATH, in its own folder, or in a package from PyPI."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    packages = Path(torch.__file__).parents[1] / "nvidia"
    found = [shutil.which(name), f"{home}/bin/{name}", *(str(p) for p in packages.glob(f"*/bin/{name}"))]
    return next((path for path in found if path and Path(path).is_file()), None)


def built(name: str) -> Path:
    """The object of a source; skips where it cannot be read."""
    if tool("cuobjdump") is None or tool("nvdisasm") is None:
        pytest.skip("expected cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    compiled = OBJECTS / f"{name}.o"
    if not compiled.is_file():
        pytest.skip(f"expected {compiled}, which `make cuda-check` builds")
    sources = max(path.stat().st_mtime for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    if compiled.stat().st_mtime < sources and "BARK_ACCEL_CUDA_OBJECTS" not in os.environ:
        pytest.skip(f"{compiled} is older than its source: `make cuda-check`")
    return compiled


def dump(path: Path, *options: str) -> str:
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:{Path(tool('nvdisasm') or '').parent}"}
    command = [tool("cuobjdump") or "", *options, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@functools.cache
def functions(name: str, arch: str = "sm_90") -> dict[str, list[str]]:
    """Instructions of each kernel of an object."""
    parts = dump(built(name), "-arch", arch, "-sass").split("Function : ")[1:]
    assert parts, f"expected code for {arch} in {name}.o"
    return {part.split("\n", 1)[0].strip(): INSTRUCTION.findall(part) for part in parts}


@pytest.mark.parametrize("name", PRODUCTS)
def test_weights_are_asked_for_before_the_kernel_ahead_has_ended(name: str) -> None:
    """Of the two waits the last one counts: the first is for weights that somebody may have just written."""
    aligned = {key: code for key, code in functions(name).items() if key.endswith("Lb1EEEEEvNT_6ParamsE")}
    assert len(aligned) == 5, [*functions(name)]
    for key, code in aligned.items():
        waits = [i for i, instruction in enumerate(code) if instruction.startswith("ACQBULK")]
        loads = [i for i, instruction in enumerate(code) if instruction.startswith("LDG.E.128")]
        ahead = sum(i < waits[-1] for i in loads)
        assert len(waits) == 2 and ahead >= 4, f"{key}: {ahead} loads of 16 bytes before the wait"
        assert len(loads) - ahead >= 4, f"{key}: the next batch is not asked for as a whole"


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_asked_for_before_the_other_blocks_are_there(dtype: str) -> None:
    """A block of the persistent step has loads in flight while it looks at the counter of those that have arrived."""
    for key, code in functions(f"persistent_{dtype}").items():
        ahead, most = 0, 0
        for instruction in code:
            if instruction.startswith(("BAR.SYNC", "STS")):
                ahead = 0
            ahead += instruction.startswith(("LD.E.128", "LDG.E.128"))
            if ".STRONG.GPU" in instruction and instruction.startswith("LD"):
                most = max(most, ahead)
        assert most >= 4, f"{key}: {most} loads of 16 bytes before a look at the counter"


def test_the_samplers_bins_are_no_loops_of_compare_and_swap() -> None:
    for key, code in functions("fused_sample").items():
        atomics = {instruction.split()[0] for instruction in code if instruction.startswith(("ATOM", "RED"))}
        assert any(a.startswith("ATOMS.POPC.INC") for a in atomics), f"{key}: counts are not added in hardware"
        assert not [a for a in atomics if "CAS" in a], f"{key}: {atomics}"


@pytest.mark.parametrize("name", ("attention", *PRODUCTS))
def test_no_division_of_64_bits(name: str) -> None:
    """They are calls of some hundred instructions."""
    built(name)
    assert not re.findall(r"\$__internal_\d+_\$__cuda_sm20_(?:div|rem)_[su]64", dump(built(name), "-elf"))


@pytest.mark.parametrize("name", ("fused_sample", "attention", *PRODUCTS, *(f"persistent_{dtype}" for dtype in DTYPES)))
def test_there_is_code_for_every_architecture_built_for(name: str) -> None:
    compiled = built(name)
    options = (OBJECTS / "archs").read_text() if (OBJECTS / "archs").is_file() else ""
    wanted = set(re.findall(r"sm_\d+", options)) or {"sm_90"}
    assert wanted <= set(re.findall(r"sm_\d+", dump(compiled, "-lelf")))
