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

from benchmarks.gpu import paper

ROOT = Path(__file__).parents[2]
OBJECTS = Path(os.environ.get("BARK_ACCEL_CUDA_OBJECTS", ROOT / "build" / "cuda"))
DTYPES = ("float32", "float16", "bfloat16", "int8")
ALONE = ("sm_75", "sm_86", "sm_89", "sm_100", "sm_120")  # in one dtype
ARCHS = ("sm_80", "sm_90", *ALONE)
PRODUCTS = tuple(f"gemv_{dtype}" for dtype in DTYPES)
DIVISION = r"\$__internal_\d+_\$__cuda_sm20_(?:div|rem)_[su]64"
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


def checked(name: str, arch: str) -> Path:
    """The object that has code for an architecture: a source's, or what `make cuda-check` compiles for it alone."""
    if arch not in ALONE:
        return built(name)
    built(name)
    alone = OBJECTS.parent / "cuda-check" / f"{name}.{arch}.cubin"
    if not alone.is_file():
        pytest.skip(f"expected {alone}, which `make cuda-check` builds")
    return alone


@functools.cache
def functions(name: str, arch: str = "sm_90") -> dict[str, list[str]]:
    """Instructions of each kernel of an object."""
    parts = dump(checked(name, arch), "-arch", arch, "-sass").split("Function : ")[1:]
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
        release = next(i for i, instruction in enumerate(code) if instruction.startswith("PREEXIT"))
        ahead = sum(i < waits[-1] for i in loads)
        assert waits[0] < release < waits[-1], f"{key}: the next kernel is released at {release}, waits at {waits}"
        assert len(waits) == 2 and ahead >= 4, f"{key}: {ahead} loads of 16 bytes before the wait"
        assert len(loads) - ahead >= 4, f"{key}: the next batch is not asked for as a whole"


@pytest.mark.parametrize("dtype, size", {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}.items())
def test_the_paper_model_counts_what_was_built(dtype: str, size: int) -> None:
    """Loads that a lane of a product has in flight, and instructions of the ring's loop, of one row."""
    (code,) = [c for key, c in functions(f"gemv_{dtype}").items() if key.endswith("Li1ELb1EEEEEvNT_6ParamsE")]
    wait = max(i for i, line in enumerate(code) if line.startswith("ACQBULK"))
    ahead = sum(line.startswith("LDG.E.128") for line in code[:wait])
    assert ahead == paper.OUTPUTS * (paper.LOADS if size > 1 else 2)
    (code,) = [
        c for key, c in functions(f"persistent_{dtype}").items() if re.search(r"persistent_entry.*Li1EEEEEv", key)
    ]
    first = next(i for i, line in enumerate(code) if line.startswith("DEPBAR.LE SB0, 0x15"))
    copied = next(i for i, line in enumerate(code) if i > first and line.startswith("LDGDEPBAR"))
    # The rest steps to the next batch.
    assert paper.LOOP[size] - 20 <= copied - first <= paper.LOOP[size]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_on_their_way_while_blocks_wait_for_each_other(dtype: str) -> None:
    """Only the last wait of a block of the persistent step, and that of a ring of one, let no copy be under way."""
    kernels = {key: code for key, code in functions(f"persistent_{dtype}").items() if "persistent_entry" in key}
    assert len(kernels) == 2, [*kernels]
    for key, code in kernels.items():
        copies = [i for i, instruction in enumerate(code) if instruction.startswith("LDGSTS")]
        waits = [
            (i, int(left, 16)) for i, line in enumerate(code) for left in re.findall(r"DEPBAR.LE SB0, (0x\w+)", line)
        ]
        assert sorted(left for _, left in waits) == [0, 0, 1, 3, 5, 9, 13, 21], f"{key}: {waits}"
        looks = [
            i for i, instruction in enumerate(code) if instruction.startswith("LD") and ".STRONG.GPU" in instruction
        ]
        assert copies[0] < looks[0], f"{key}: no copy before the first look at the counter"
        first = next(i for i, left in waits if left == 21)
        loop = code[first : next(i for i in copies if i > first)]
        assert not [line for line in loop if line.startswith(("LDL", "STL", "BAR", "LDG"))], f"{key}: {loop}"
        kept = [line for line in code if line.startswith(("LDL", "STL"))]
        assert len(kept) < 24, f"{key}: {len(kept)} accesses to local memory, more than the call of the draw has"


@pytest.mark.parametrize("arch", ARCHS)
def test_the_samplers_bins_are_no_loops_of_compare_and_swap(arch: str) -> None:
    added = "ATOMS.ADD" if arch == "sm_75" else "ATOMS.POPC.INC"
    for key, code in functions("fused_sample", arch).items():
        atomics = {instruction.split()[0] for instruction in code if instruction.startswith(("ATOM", "RED"))}
        assert any(a.startswith(added) for a in atomics), f"{key}: counts are not added in hardware"
        assert not [a for a in atomics if "CAS" in a], f"{key}: {atomics}"


@pytest.mark.parametrize("name", ("attention", *PRODUCTS))
def test_no_division_of_64_bits(name: str) -> None:
    """They are calls of some hundred instructions."""
    assert not re.findall(DIVISION, dump(built(name), "-elf"))


@pytest.mark.parametrize("arch", ALONE)
@pytest.mark.parametrize("name", ("attention", "gemv_float16"))
def test_no_division_of_64_bits_elsewhere(name: str, arch: str) -> None:
    assert not re.findall(DIVISION, checked(name, arch).read_bytes().decode("latin1"))


@pytest.mark.parametrize("arch", ARCHS)
def test_lanes_have_loads_in_flight(arch: str) -> None:
    """At least a batch of weights and the next one, whatever the number of rows."""
    aligned = {key: c for key, c in functions("gemv_float16", arch).items() if key.endswith("Lb1EEEEEvNT_6ParamsE")}
    assert len(aligned) == 5
    for key, code in aligned.items():
        assert sum(line.startswith("LDG.E.128") for line in code) >= 8, key


@pytest.mark.parametrize("arch", ARCHS)
def test_what_other_blocks_wrote_is_read_anew(arch: str) -> None:
    """By each acquire of the persistent step the level-one cache is emptied, and no load takes the read-only path."""
    kernels = {key: c for key, c in functions("persistent_float16", arch).items() if "persistent_entry" in key}
    assert len(kernels) == 2
    for key, code in kernels.items():
        looks = [i for i, line in enumerate(code) if line.startswith("LD") and ".STRONG.GPU" in line]
        assert looks, f"{key}: nobody waits for other blocks"
        for i in looks:
            ahead = code[i : i + 12]
            assert any(line.startswith("CCTL.IVALL") for line in ahead), f"{key}: {ahead}"
        adds = [i for i, line in enumerate(code) if line.startswith("RED")]
        assert adds and all("MEMBAR" in "".join(code[max(0, i - 12) : i]) for i in adds), (
            f"{key}: arrives without a fence"
        )
        assert not [line for line in code if "CONSTANT" in line and line.startswith("LD")], key
        copies = sum(line.startswith("LDGSTS") for line in code)
        assert bool(copies) == (arch != "sm_75"), f"{key}: {copies} copies into the ring"


@pytest.mark.parametrize("name", ("fused_sample", "attention", *PRODUCTS, *(f"persistent_{dtype}" for dtype in DTYPES)))
def test_there_is_code_for_every_architecture_built_for(name: str) -> None:
    compiled = built(name)
    options = (OBJECTS / "archs").read_text() if (OBJECTS / "archs").is_file() else ""
    wanted = set(re.findall(r"sm_\d+", options)) or {"sm_90"}
    assert wanted <= set(re.findall(r"sm_\d+", dump(compiled, "-lelf")))
