"""The inner loops of the compiled kernels keep their accumulators in registers: a compiler spills silently."""

from __future__ import annotations

import functools
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bark_accel.ops import _library

ROOT = Path(__file__).parents[2]
MULTIPLY = re.compile(
    r"\t(\{vex\} )?v?(fn?m(add|sub)\d+ps|pdpwssd|pdpbusd|pmaddwd)\s"  # x86
    r"|\t(fmla|smlal2?|smull2?|sdot)\s"  # aarch64
)
JUMP = re.compile(r"\t(?:j\w+|b\.\w+|cbn?z\s+\w+,|b)\s+(?:0x)?([0-9a-f]+)\s")
SPILL = re.compile(r"\tv?mov\w+\s+%[xyz]mm\d+,[-0-9a-fx]*\(%r[sb]p\)|\tst[rp]\s+q\d+,.*\[sp")
# Kernels by name, and the multiply-adds that their inner block has at least.
LOOPS = {
    "dot_tile<float, 4, 1": 4,
    "dot_tile<bark_accel::Half, 4, 1": 4,
    "dot_tile_int8<4, 4>": 16,
    "multiply_block<8>": 16,
    "dot_rows_of<signed char, 4>": 8,
    "multiply_block<6>": 12,
    "multiply_floats": 12,
    "multiply_taps": 12,
    "hidden_products": 8,
    "multiply_panels": 12,
    "multiply_group": 16,
}
KERNELS = [
    *(("avx512_vnni", name) for name in LOOPS),
    *(("avx512", name) for name in ("dot_tile<float, 4, 1", "multiply_floats", "multiply_panels")),
    *((isa, name) for isa in ("avx2", "avx_vnni", "avx512") for name in ("multiply_taps", "hidden_products")),
    ("avx512", "multiply_block<8>"),
    *((isa, name) for isa in ("avx2", "avx_vnni") for name in ("multiply_floats", "multiply_panels")),
    *((isa, "multiply_block<6>") for isa in ("avx2", "avx_vnni")),
]
# Smaller loops are ends of rows, which copy numbers to the stack on purpose.
FEWEST_MULTIPLIES = 9
# A GELU, of 23 multiplies, stores up to three vectors, which are no accumulators.
MULTIPLIES_A_STORE = 7

needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")


def functions(file: Path, objdump: str = "objdump") -> dict[str, list[str]]:
    """The instructions of each function of a file, a line each."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(file)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for part in listing.split("\n\n"):
        head, _, body = part.strip().partition("\n")
        found.setdefault(head.partition(" ")[2].strip("<>:"), []).extend(body.splitlines())
    return found


@functools.cache
def functions_of_library() -> dict[str, list[str]]:
    return functions(_library.LIBRARY)


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """Instructions between jumps and where those lead."""
    targets = {match.group(1) for line in lines if (match := JUMP.search(line))}
    block: list[str] = []
    for line in lines:
        if line.partition(":")[0].strip() in targets:
            yield block
            block = []
        block.append(line)
        if JUMP.search(line):
            yield block
            block = []
    yield block


def inner_loops(lines: list[str]) -> list[list[str]]:
    """Instructions that a jump back at their end repeats, without loops inside."""
    at = {line.partition(":")[0].strip(): i for i, line in enumerate(lines)}
    jumps = ((i, match) for i, line in enumerate(lines) if (match := JUMP.search(line)))
    spans = [(at[target], i) for i, match in jumps if (target := match.group(1)) in at and at[target] <= i]
    spans.sort(key=lambda span: span[1] - span[0])
    found: list[tuple[int, int]] = []
    for first, last in spans:
        if not any(first <= start and end <= last for start, end in found):
            found.append((first, last))
    return [lines[first : last + 1] for first, last in found]


def count(pattern: re.Pattern[str], lines: list[str]) -> int:
    return sum(bool(pattern.search(line)) for line in lines)


def multiplying(lines: list[str], fewest: int = FEWEST_MULTIPLIES) -> list[list[str]]:
    """Inner loops of many multiplies."""
    return [loop for loop in inner_loops(lines) if count(MULTIPLY, loop) >= fewest]


@needs_objdump
@pytest.mark.parametrize(("isa", "kernel"), KERNELS)
def test_no_accumulator_is_spilled(isa: str, kernel: str) -> None:
    if isa not in _library.load().available_isas():
        pytest.skip(f"needs a CPU with {isa}")
    prefix = f"bark_accel::{isa}::{kernel}"
    matching = [lines for name, lines in functions_of_library().items() if prefix in name.partition("(")[0]]
    assert matching, f"expected a function {prefix}, got none"
    inner = max((block for lines in matching for block in blocks(lines)), key=lambda block: count(MULTIPLY, block))
    assert count(MULTIPLY, inner) >= LOOPS[kernel]
    assert count(SPILL, inner) <= 1, "\n".join(inner)


@needs_objdump
@pytest.mark.parametrize("isa", ["avx2", "avx_vnni", "avx512", "avx512_vnni"])
def test_no_loop_of_any_kernel_spills(isa: str) -> None:
    """Whatever a function is called and what was inlined into it; the CPU need not have these instructions."""
    if "avx2" not in _library.load().available_isas():
        pytest.skip("the library was built for another processor")
    loops = 0
    for name, lines in functions_of_library().items():
        if name.startswith(f"bark_accel::{isa}::"):
            for loop in multiplying(lines):
                loops += 1
                assert count(SPILL, loop) <= count(MULTIPLY, loop) // MULTIPLIES_A_STORE, "\n".join([name, *loop])
    assert loops >= 15


# Compiler, objdump and flags of setup.py.
COMPILERS = {
    **{isa: ("g++", "objdump", "X86_FLAGS") for isa in ("avx2", "avx_vnni", "avx512", "avx512_vnni")},
    **{isa: ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "ARM_FLAGS") for isa in ("neon", "neon_dotprod")},
}
MORE_ROWS = ("kWidth == 16 ? 14 : kWidth == 8 ? 6 :", "kWidth == 16 ? 16 : kWidth == 8 ? 16 :")


def compiled_products(isa: str, folder: Path, old: str = "", new: str = "") -> list[list[str]]:
    """The instructions of the panels' products, compiled with `old` replaced by `new` in their source."""
    compiler, objdump, flags = COMPILERS[isa]
    if shutil.which(compiler) is None or shutil.which(objdump) is None:
        pytest.skip(f"needs {compiler} and {objdump}")
    with mock.patch("setuptools.setup"):
        setup = runpy.run_path(str(ROOT / "setup.py"))
    shutil.copytree(ROOT / "csrc" / "kernels", folder / "kernels")
    panels = folder / "kernels" / "int16_panels.h"
    assert old in panels.read_text()
    panels.write_text(panels.read_text().replace(old, new) if old else panels.read_text())
    source = folder / "products.cpp"
    neon = "#define BARK_NEON\n" if flags == "ARM_FLAGS" else ""
    source.write_text(
        f'{neon}#define BARK_ACCEL_ISA {isa}\n#include "kernels/float32_linear.h"\n#include "kernels/int8_linear.h"\n'
        f"using namespace bark_accel::{isa};\n"
        "void pairs(const int32_t* r, const int32_t* c, int64_t n, int32_t* t) { multiply_panels(r, c, n, t); }\n"
        "void bytes(const Int8Rows& r, const Int8Columns& c, float* t) { multiply_group(r, c, t); }\n"
        "void floats(const float* r, const float* c, int64_t n, float* t) { multiply_floats(r, c, n, true, t); }\n"
    )
    options = [*setup["OPTIMISE"], *setup["KERNEL_FLAGS"], *setup[flags][isa]]
    subprocess.run([compiler, *options, "-c", source, "-o", folder / "products.o"], check=True)
    return list(functions(folder / "products.o", objdump).values())


def spills_of_products(*arguments: Any) -> list[int]:
    """Stores in each inner loop, those of a loop that is unrolled altogether included."""
    parts = [part for lines in compiled_products(*arguments) for part in multiplying(lines, 8) or [max_block(lines)]]
    return [count(SPILL, part) for part in parts if count(MULTIPLY, part) >= 8]


def max_block(lines: list[str]) -> list[str]:
    """The block of most multiplies."""
    return max(blocks(lines), key=lambda block: count(MULTIPLY, block))


@pytest.mark.parametrize("isa", COMPILERS)
def test_products_of_panels_stay_in_registers(isa: str, tmp_path: Path) -> None:
    assert spills_of_products(isa, tmp_path) == [0, 0, 0]


@pytest.mark.parametrize("isa", ["avx2", "avx_vnni", "avx512", "avx512_vnni"])
def test_panels_of_too_many_rows_are_seen(isa: str, tmp_path: Path) -> None:
    """More accumulators than there are registers, if only by one."""
    assert all(spills > 0 for spills in spills_of_products(isa, tmp_path, *MORE_ROWS))


def test_a_spilled_accumulator_is_seen() -> None:
    kept = ["  10:\tvpdpwssd (%rax),%zmm1,%zmm2", "  16:\tcmp %rax,%rbx", "  19:\tjne    10 <loop>"]
    spilled = [*kept[:1], "  14:\tvmovdqa64 %zmm2,0x40(%rsp)", *kept[1:]]
    for lines, spills in ((kept, 0), (spilled, 1)):
        inner = max(blocks(lines), key=lambda block: count(MULTIPLY, block))
        assert (count(MULTIPLY, inner), count(SPILL, inner)) == (1, spills)
        assert inner_loops(lines) == [lines]
