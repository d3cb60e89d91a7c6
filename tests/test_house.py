"""The rooms of the house: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bark_accel"
FACE = "bark_accel"
# From the ground up: a room imports itself and rooms before it. `FACE` is the package's own __init__.
ROOMS = [
    "_version",
    "report",
    "small_bark",
    "ops",
    "transformer",
    "decoding",
    "stages",
    "streaming",
    "voices",
    "longform",
]
ROOMS += ["hf", "patches", FACE, "bench", "cli", "__main__"]
KNOW_TRANSFORMERS = {"hf", "patches", "bench"}
CHANGE_MODELS = {"patches", FACE, "bench", "cli"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def imports(module: str, tree: ast.AST) -> set[str]:
    """Modules that a module imports anywhere, type-checking blocks left out; of our own, the exact module."""
    is_package = MODULES[module].name == "__init__.py"
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` means the module, `from module import name` the module itself.
            names |= {f"{origin}.{a.name}" if f"{origin}.{a.name}" in MODULES else origin for a in node.names}
    return names


def _runtime_nodes(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _runtime_nodes(node)


IMPORTS = {module: imports(module, ast.parse(path.read_text())) for module, path in MODULES.items()}


def rooms_above(module: str, imported: set[str]) -> set[str]:
    """Imports of our own modules that stand in a higher room than `module`."""
    floor = ROOMS.index(room_of(module))
    return {name for name in imported & MODULES.keys() if ROOMS.index(room_of(name)) > floor}


@pytest.mark.parametrize("module", MODULES)
def test_no_room_imports_a_higher_one(module):
    assert room_of(module) in ROOMS, "every module stands in a room"
    assert not rooms_above(module, IMPORTS[module])


@pytest.mark.parametrize(
    "line", ["from bark_accel import patches", "from .. import patches", "from bark_accel.patches import api"]
)
def test_every_form_of_an_import_is_seen(line):
    assert rooms_above("bark_accel.stages.fine", imports("bark_accel.stages.fine", ast.parse(line)))


def test_no_modules_import_each_other_in_a_circle():
    left = {module: imported & MODULES.keys() - {module} for module, imported in IMPORTS.items()}
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    assert not left, "these import each other, or something that does"


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in KNOW_TRANSFORMERS])
def test_few_rooms_know_transformers(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] == "transformers"}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in CHANGE_MODELS])
def test_few_rooms_reach_the_patches(module):
    assert not {name for name in IMPORTS[module] if name.startswith("bark_accel.patches")}


def test_rooms_say_what_they_are_for():
    rooms = [path for path in PACKAGE.glob("*/__init__.py")]
    assert rooms and all(ast.get_docstring(ast.parse(path.read_text())) for path in rooms)


def test_the_link_of_the_root_is_the_room():
    assert (ROOT / "patches").resolve() == PACKAGE / "patches"
    assert not (PACKAGE / "patches").is_symlink()


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
    code = "import sys; sys.modules['fcntl'] = None; import bark_accel, bark_accel.longform.chunk_store"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_surface():
    import bark_accel

    assert all(getattr(bark_accel, name).__doc__ for name in bark_accel.__all__)
