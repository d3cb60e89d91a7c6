"""The words of the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("bark_accel", "benchmarks", "recipes", "examples")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# With these, a sentence needs the name of what it describes as its subject.
INCOMPLETE = {
    "Of",
    "What",
    "Whether",
    "As",
    "Where",
    "How",
    "In",
    "Who",
    "When",
    "Those",
    "That",
    "From",
    "For",
    "With",
    "By",
    "None",
}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_docstrings_are_read_without_the_code(file):
    docstrings = [
        ast.get_docstring(n) for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, DOCUMENTED)
    ]
    assert not [text for text in docstrings if text and text.split()[0].strip(",:") in INCOMPLETE]
