"""The inner loops of the compiled kernels keep their accumulators in registers: a compiler spills silently."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from bark_accel.ops import _library

MULTIPLY = re.compile(r"\t(\{vex\} )?v?(fmadd\d+ps|pdpwssd|pdpbusd|pmaddwd)\s")
JUMP = re.compile(r"\tj\w+\s+([0-9a-f]+)\s")
SPILL = re.compile(r"\tv?mov\w+\s+%[xyz]mm\d+,[-0-9a-fx]*\(%r[sb]p\)")
# Kernels by name, and the multiply-adds that their inner block has at least.
LOOPS = {
    "dot_tile<float, 4, 1": 4,
    "dot_tile<bark_accel::Half, 4, 1": 4,
    "dot_tile_int8<4, 4, true>": 16,
    "multiply_block<8>": 16,
    "dot_rows_of<signed char, 4>": 8,
    "multiply_block<6>": 12,
    "multiply_floats": 12,
    "multiply_panels": 12,
    "multiply_group": 16,
}
KERNELS = [
    *(("avx512_vnni", name) for name in LOOPS),
    *(("avx512", name) for name in ("dot_tile<float, 4, 1", "multiply_floats", "multiply_panels")),
    ("avx512", "multiply_block<8>"),
    *((isa, name) for isa in ("avx2", "avx_vnni") for name in ("multiply_floats", "multiply_panels")),
    *((isa, "multiply_block<6>") for isa in ("avx2", "avx_vnni")),
]


@functools.cache
def functions() -> dict[str, list[str]]:
    """The instructions of each function of the library, a line each."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(_library.LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, list[str]] = {}
    for part in listing.split("\n\n"):
        head, _, body = part.strip().partition("\n")
        found[head.partition(" ")[2].strip("<>:")] = body.splitlines()
    return found


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


def count(pattern: re.Pattern[str], lines: list[str]) -> int:
    return sum(bool(pattern.search(line)) for line in lines)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize(("isa", "kernel"), KERNELS)
def test_no_accumulator_is_spilled(isa: str, kernel: str) -> None:
    if isa not in _library.load().available_isas():
        pytest.skip(f"needs a CPU with {isa}")
    prefix = f"bark_accel::{isa}::{kernel}"
    matching = [lines for name, lines in functions().items() if prefix in name.partition("(")[0]]
    assert matching, f"expected a function {prefix}, got none"
    inner = max((block for lines in matching for block in blocks(lines)), key=lambda block: count(MULTIPLY, block))
    assert count(MULTIPLY, inner) >= LOOPS[kernel]
    assert count(SPILL, inner) <= 1, "\n".join(inner)


def test_a_spilled_accumulator_is_seen() -> None:
    kept = ["  10:\tvpdpwssd (%rax),%zmm1,%zmm2", "  16:\tcmp %rax,%rbx", "  19:\tjne    10 <loop>"]
    spilled = [*kept[:1], "  14:\tvmovdqa64 %zmm2,0x40(%rsp)", *kept[1:]]
    for lines, spills in ((kept, 0), (spilled, 1)):
        inner = max(blocks(lines), key=lambda block: count(MULTIPLY, block))
        assert (count(MULTIPLY, inner), count(SPILL, inner)) == (1, spills)
