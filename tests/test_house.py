"""The rooms of the house: who may know whom."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import subprocess
import sys

import pytest
from support.draw_house import PICTURE, draw
from support.house import FACE, IMPORTS, MODULES, PACKAGE, ROOMS, ROOT, imports, room_of, rooms_above

import bark_accel

KNOW_TRANSFORMERS = {"hf", "patches", "bench"}
CHANGE_MODELS = {"patches", FACE, "suno", "bench", "cli"}


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


def test_the_stable_interface_is_all_that_the_library_takes_from_torch():
    """No header of torch but those of its C interface, which later versions keep."""
    lines = [line for p in (ROOT / "csrc").rglob("*.*") for line in p.read_text().splitlines()]
    included = {line for line in lines if re.match(r"#include <(torch|ATen|c10|pybind11|Python)", line)}
    assert included == {
        "#include <torch/csrc/stable/c/shim.h>",
        "#include <torch/headeronly/util/shim_utils.h>",
        "#include <torch/headeronly/version.h>",
    }


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, bark_accel; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_can_be_imported_without_posix():
    windows = "sys.platform = 'win32'; sys.modules |= {'fcntl': None, 'msvcrt': types.ModuleType('msvcrt')}"
    code = f"import sys, types, torch; {windows}; import bark_accel, bark_accel.longform.chunk_store"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_surface():
    relative = (n for n in ast.walk(ast.parse(MODULES[FACE].read_text())) if isinstance(n, ast.ImportFrom) and n.level)
    homes = {alias.name: node.module for node in relative for alias in node.names if alias.name != "__version__"}
    assert homes == bark_accel._HOME and sorted(homes) == bark_accel.__all__


@pytest.mark.parametrize("name", bark_accel.__all__)
def test_a_public_name(name):
    value = getattr(bark_accel, name)
    assert value.__module__ == f"{FACE}.{bark_accel._HOME[name]}" and inspect.getdoc(value)
    assert pickle.loads(pickle.dumps(value)) is value


def test_what_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="'bark_accel' has no attribute 'speed'"):
        _ = bark_accel.speed


def test_the_picture_shows_the_house():
    assert PICTURE.read_text() == draw(), "run `make picture`"


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by their names, and would leave the second out."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert len(names) == len(set(names))
