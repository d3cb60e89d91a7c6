"""The import arrows of the house: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "bark_accel").glob("*.py")) + sorted((ROOT / "bark_accel" / "stages").glob("*.py"))
LAYERS = ["spec", "weights", "precision", "kv_cache", "active_rows", "backend", "generators", "sampling", "layers"]
LAYERS += [
    "prefill",
    "bidirectional",
    "gpt",
    "lookahead",
    "graphs",
    "speculation",
    "stages",
    "policies",
    "pipeline",
    "streamer",
]
LAYERS += ["voice_preset", "utterance", "text", "chunk_store", "long_text"]


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, relative ones from the package root, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    package = ["bark_accel", *path.relative_to(ROOT / "bark_accel").parent.parts]
    names = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names.add(".".join([*base, *([node.module] if node.module else [])]))
    return names


def _runtime_nodes(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _runtime_nodes(node)


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_only_patches_know_transformers(path):
    assert not {name for name in imports(path) if name.split(".")[0] == "transformers"}


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_only_the_surface_and_the_command_line_reach_the_patches(path):
    if path.name in ("__init__.py", "__main__.py") and path.parent.name == "bark_accel":
        return
    assert not {name for name in imports(path) if name.startswith("bark_accel.patches")}


@pytest.mark.parametrize("index, layer", enumerate(LAYERS))
def test_lower_layers_do_not_import_higher_ones(index, layer):
    path = ROOT / "bark_accel" / layer
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    higher = {f"bark_accel.{name}" for name in LAYERS[index + 1 :]}
    for file in files:
        assert not imports(file) & higher, file


def test_kernels_are_free_of_torch():
    cuda = [p for p in (ROOT / "csrc" / "cuda").iterdir() if p.name != "bind.cpp"]
    for header in [*(ROOT / "csrc" / "kernels").glob("*.h"), *cuda]:
        assert not [line for line in header.read_text().splitlines() if "#include" in line and "torch" in line.lower()]


def test_schemas_stand_in_one_place():
    found = [p.name for p in (ROOT / "csrc").rglob("*.cpp") if "TORCH_LIBRARY(" in p.read_text()]
    assert found == ["ops.cpp"]


def test_importing_the_package_imports_neither_transformers_nor_the_library():
    code = "import sys, bark_accel; sys.exit(any(m in sys.modules for m in ('transformers', 'bark_accel._C')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_can_be_imported_without_posix():
    code = "import sys; sys.modules['fcntl'] = None; import bark_accel, bark_accel.chunk_store"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_surface():
    import bark_accel

    assert all(getattr(bark_accel, name).__doc__ for name in bark_accel.__all__)
