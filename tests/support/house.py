"""The import graph of the package: which module and which room imports which."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bark_accel"
FACE = "bark_accel"
# From the ground up: a room imports itself and rooms before it. `FACE` is the package's own __init__.
ROOMS = [
    "_version",
    "_arguments",
    "approximations",
    "_caller",
    "_cpus",
    "_forked",
    "report",
    "small_bark",
    "voices",
    "ops",
    "transformer",
    "decoding",
    "stages",
    "streaming",
]
ROOMS += ["engine", "longform", "hf", "patches", FACE, "suno", "notebook", "bench", "ray", "server", "cli", "__main__"]


def module_name(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """Name of the room that a module stands in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def imports(module: str, tree: ast.AST) -> set[str]:
    """Modules that a module imports anywhere; of our own, the exact module.

    Type-checking blocks are left out, but for the face's: it names what is imported at first use.
    """
    is_package = MODULES[module].name == "__init__.py"
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree) if module == FACE else _runtime_nodes(tree):
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


def room_arrows() -> dict[str, set[str]]:
    """Rooms that each room imports."""
    arrows: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, imported in IMPORTS.items():
        arrows[room_of(module)] |= {room_of(name) for name in imported & MODULES.keys()}
    return {room: targets - {room} for room, targets in arrows.items()}
