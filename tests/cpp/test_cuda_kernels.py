"""The CUDA kernel bodies on the CPU: `emulator/` runs them, the programs beside it compare them with float64.

No GPU and no CUDA toolkit are needed, only a C++ compiler. `make mutants` (BARK_ACCEL_MUTANTS=all) breaks the kernels
in every way of `MUTANTS`, the normal tests each file in one; it also takes each synchronisation out of the whole step,
the normal tests out of the kernels that the step is made of.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
PROGRAMS = ("gemv", "attention", "fused_sample", "decode_step", "embedding_sum", "cards")
# Not the two whose threads never wait for each other, or have another's kernel.
WITH_SITES = ("gemv", "attention", "fused_sample", "decode_step")
FLAGS = ("-std=c++17", "-fno-strict-aliasing", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
CPU_SECONDS = 300
SANITIZE = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

MUTANTS = [
    ("gemv", "gemv_tile.cuh", "lane * 4 + k % 4;", "lane * 4 + (k + 1) % 4;"),
    ("gemv", "gemv_weights.cuh", "chunk * kChunk + walk.lane * kLoad;", "chunk * kChunk + (walk.lane ^ 1) * kLoad;"),
    ("gemv", "gemv.cuh", "row >= p.rows) return;", "row + 1 >= p.rows) return;"),
    ("gemv", "gemv_weights.cuh", "if (i < left) some", "if (i + 1 < left) some"),
    ("gemv", "gemv_weights.cuh", "begin + ((own - begin) & (step - 1))", "begin + own"),
    ("gemv", "gemv.cuh", "(ctx.block() * groups + group) * kOutputs", "ctx.block() * groups + group"),
    ("attention", "numbers.cuh", "i < left ? to_float(from[i])", "i + 1 < left ? to_float(from[i])"),
    ("attention", "attention.cuh", "at <= s.length + t ? dot", "at < s.length + t ? dot"),
    ("attention", "attention.cuh", "size = (total + splits - 1) / splits", "size = total / splits"),
    ("attention", "attention.cuh", "p.lengths[s.row]", "p.lengths[0]"),
    ("attention", "attention.cuh", "t = at - s.length;", "t = larger(0, at - s.length - 1);"),
    ("attention", "gemv_input.cuh", "share[i * in.head_dim]", "share[0]"),
    ("fused_sample", "fused_sample.cuh", "p.rules, n);", "p.rules, 0);"),
    ("fused_sample", "fused_sample.cuh", "row.count - p.top_k;", "row.count - p.top_k - 1;"),
    ("fused_sample", "fused_sample.cuh", "x == value && i >= first", "x == value && i > first"),
    ("fused_sample", "fused_sample.cuh", "row.begin + i - row.range_start", "row.begin + i"),
    ("fused_sample", "fused_sample.cuh", "+ (before + low < low)", ""),
    ("fused_sample", "fused_sample.cuh", "next.length[row] += 1;", ""),
    ("fused_sample", "philox.cuh", "/ 4 + turn / 4;", "/ 4;"),
    ("fused_sample", "philox.cuh", "words.word[turn % 4]", "words.word[0]"),
    ("fused_sample", "philox.cuh", "noise.draws[row] * philox_advance(noise)", "noise.draws[row]"),
    ("decode_step", "gemv_input.cuh", "length + row % in.tokens", "length + row / in.tokens"),
    ("decode_step", "gemv_input.cuh", "in.lengths[row / in.tokens]", "in.lengths[0]"),
    ("decode_step", "decode_step.cuh", "normed_product(layer.norm_2,", "normed_product(layer.norm_1,"),
    ("decode_step", "gemv_tile.cuh", "there && ctx.block() == 0", "there && ctx.block() == 1"),
    ("decode_step", "decode_step.cuh", "layer_index == 0 ? embedded(qkv, step, s.hidden) : qkv", "qkv"),
    ("gemv", "gemv.cuh", "begin(ctx, p, walk);\n    ctx.wait_for_previous();", "begin(ctx, p, walk);"),
    ("attention", "attention.cuh", "ctx.wait_for_previous();\n    const SharesInput", "const SharesInput"),
    ("fused_sample", "fused_sample.cuh", "ctx.wait_for_previous();", ""),
    ("decode_step", "gemv.cuh", "if (p.waits_first) ctx.wait_for_previous();\n", "\n"),
    ("decode_step", "gemv.cuh", "if (fresh || walk.in_tile < walk.all)", "if (fresh)"),
    ("decode_step", "weight_ring.cuh", "i < p.ring_depth; ++i) fetch", "i + 1 < p.ring_depth; ++i) fetch"),
    ("decode_step", "weight_ring.cuh", "slot + 1 == p.ring_depth ? 0", "slot + 2 == p.ring_depth ? 0"),
    ("decode_step", "weight_ring.cuh", "wait_for_batches(p.ring_depth - 1)", "wait_for_batches(p.ring_depth)"),
    ("decode_step", "weight_ring.cuh", "if (--left > 0)", "if (left-- > 0)"),
    ("decode_step", "weight_ring.cuh", "p.run.ways == 2 ? 1 - way : 0", "0"),
    ("decode_step", "weight_ring.cuh", "++layer <", "layer + 1 <"),
    ("decode_step", "weight_ring.cuh", "const bool there = k < int(matrix.depth);", "const bool there = true;"),
    ("decode_step", "persistent_step.cuh", "ctx.arrive(p.arrived);", ";"),
    ("decode_step", "persistent_step.cuh", "phase * uint32_t(p.blocks)", "0"),
    ("decode_step", "persistent_step.cuh", "inner.wait_for_previous();\n      ctx.barrier();", "ctx.barrier();"),
    ("decode_step", "persistent_step.cuh", "ctx.block() + part * p.blocks", "ctx.block()"),
    ("decode_step", "persistent_step.cuh", "shared() + part * bytes", "shared()"),
    ("decode_step", "persistent_step.cuh", "if (i == 0 && all_ended(p)) return false;", ""),
    ("decode_step", "persistent_step.cuh", "if (!has_ended(p.run, last))", "if (true)"),
    ("decode_step", "persistent_step.cuh", "(id < 0 || id == run.stop)", "id == run.stop"),
    ("decode_step", "persistent_step.cuh", "p.run.ways == 2 ? i % 2 : 0", "0"),
    ("decode_step", "persistent_step.cuh", "inner.wait_for_previous();\n      const int64_t row", "const int64_t row"),
    ("decode_step", "persistent_step.cuh", "which == Product::kHead ? p.head_plans[way]", "i < 0 ? p.head_plans[way]"),
    (
        "decode_step",
        "persistent_step.cuh",
        "p.run.ways ? int(*p.run.limit) : 1",
        "p.run.ways ? int(*p.run.limit) + 1 : 1",
    ),
    ("embedding_sum", "codebook_embedding_sum.cuh", "row % p.frames * p.position_stride", "row * p.position_stride"),
]
"""Program that should notice, file, text, what to put in its place."""
FIRST_OF_EACH_FILE = list({mutant[1]: mutant for mutant in reversed(MUTANTS)}.values())
ALL = os.environ.get("BARK_ACCEL_MUTANTS") == "all"
TRIED = MUTANTS if ALL else FIRST_OF_EACH_FILE


def compile_program(name: str, to: Path, *flags: str, include: Path = CUDA) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "expected a C++ compiler (g++ or c++) on the PATH"
    program = to / name
    command = [compiler, *FLAGS, *flags, f"-I{include}", f"-I{HERE}", str(HERE / f"{name}.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run under a limit of CPU time, whatever else the machine does: what is beyond it is killed, and has failed."""
    command = ["sh", "-c", f'ulimit -t {CPU_SECONDS}; exec "$0" "$@"', program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_equal_float64_and_every_synchronisation_is_needed(name: str, tmp_path: Path) -> None:
    """One test, so that a program is built once wherever tests are shared by processes."""
    program = compile_program(name, tmp_path, "-O1")
    takes_sites = name in WITH_SITES and (ALL or name != "decode_step")  # which takes minutes
    for arguments in [[], ["--sites"]] if takes_sites else [[]]:
        done = run(program, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_are_clean_under_sanitizers(name: str, tmp_path: Path) -> None:
    done = run(compile_program(name, tmp_path, "-O0", *SANITIZE), "--brief")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name, file, old, new", MUTANTS)
def test_mutants_are_of_the_kernels(name: str, file: str, old: str, new: str) -> None:
    assert (CUDA / file).read_text().count(old) == 1, f"expected {old!r} once in {file}"
    assert name in PROGRAMS and old != new


@pytest.mark.parametrize("name, file, old, new", TRIED)
def test_mutants_are_noticed(name: str, file: str, old: str, new: str, tmp_path: Path) -> None:
    shutil.copytree(CUDA.parent, tmp_path / "csrc")
    mutated = tmp_path / "csrc" / "cuda" / file
    mutated.write_text(mutated.read_text().replace(old, new))
    program = compile_program(name, tmp_path, "-O0", include=mutated.parent)
    assert run(program, "--until-failure").returncode != 0
