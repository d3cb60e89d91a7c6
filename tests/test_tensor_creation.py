"""Every tensor the package makes states its dtype and device: torch's defaults are the program's, not ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "bark_accel").rglob("*.py"))
CREATORS = {"empty", "zeros", "ones", "full", "arange", "linspace", "logspace", "eye", "tensor", "scalar_tensor"}
CREATORS |= {"rand", "randn", "randint", "randperm", "normal", "empty_strided"}


def unsaid(source: str) -> list[str]:
    """The calls in `source` that leave the dtype or the device to torch's defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and function.attr in CREATORS and ast.unparse(function.value) == "torch":
            missing = {"dtype", "device"} - {keyword.arg for keyword in node.keywords}
            found += [f"line {node.lineno}: {ast.unparse(node)} without {name}" for name in sorted(missing)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dtype_and_device_are_said(path):
    assert unsaid(path.read_text()) == []


def test_what_is_found():
    assert unsaid("torch.empty(3)") == ["line 1: torch.empty(3) without device", "line 1: torch.empty(3) without dtype"]
    assert unsaid("torch.zeros(3, dtype=d)") == ["line 1: torch.zeros(3, dtype=d) without device"]
    assert unsaid("torch.zeros(3, dtype=d, device=e); x.new_zeros(3); torch.zeros_like(x)") == []
