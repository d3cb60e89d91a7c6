"""The way into the benchmarks: every one has a name, the list needs nothing, names that there are not are refused."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bark_models import SMALL, texts

from benchmarks.__main__ import COMMANDS, file_of, is_suite, listing, purpose
from benchmarks.generation.baselines import BASELINES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def start(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A run that shares its tests would have the benchmarks switched off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, timeout=120, env=environment
    )


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_benchmark_has_a_name():
    can_run = {file for file in FILES if "main" in functions(file) or file.name.startswith("bench_")}
    assert can_run - {ROOT / "benchmarks" / "__main__.py"} == {file_of(name) for name in COMMANDS}
    assert all(is_suite(name) or "main" in functions(file_of(name)) for name in COMMANDS)


def test_the_list_names_all_and_needs_no_package():
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'transformers', 'pytest'))); "
    done = start("-c", f"{code}from benchmarks.__main__ import main; sys.exit(main([]))")
    assert done.stdout == listing() + "\n" and done.returncode == 0, done.stderr
    assert all(name in done.stdout and purpose(name).rstrip(".:") in done.stdout for name in COMMANDS)


def test_a_name_that_there_is_not():
    done = start("-m", "benchmarks", "generations")
    assert done.returncode == 2 and "expected one of ops, decode, " in done.stderr and "'generations'" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name):
    done = start("-m", "benchmarks", name, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_the_older_spelling_of_a_gpu_run_works_from_any_folder(tmp_path):
    done = start(str(ROOT / "benchmarks" / "gpu.py"), "--help", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m benchmarks gpu "), done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_changes_where_modules_come_from(file):
    assert "sys.path" not in file.read_text()


@pytest.mark.parametrize("name", BASELINES)
@torch.no_grad()
def test_baselines_are_stock_s_with_other_weights(small_model, name):
    model = BASELINES[name](small_model)
    assert "generate" not in vars(model) and small_model.dtype == torch.float32
    head = model.semantic.lm_head.weight
    weight = head() if callable(head) else head
    assert weight.dtype == (torch.bfloat16 if name == "stock bfloat16" else torch.qint8)
    audio = model.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8)
    assert audio.shape == small_model.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8).shape
