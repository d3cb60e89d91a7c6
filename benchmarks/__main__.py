"""One way in: `python -m benchmarks` lists what there is, `python -m benchmarks NAME ARGUMENTS` runs it."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# The modules have a function `main`, or are suites of pytest-benchmark.
COMMANDS = {
    "ops": "ops.bench_ops",
    "decode": "ops.bench_decode",
    "stages": "stages.bench_stages",
    "backends": "stages.backends",
    "anchor": "ops.anchor",
    "isas": "ops.isas",
    "quality": "stages.quality",
    "generation": "generation.utterances",
    "streams": "generation.streams",
    "steps": "generation.steps",
    "batches": "generation.batches",
    "load": "generation.load",
    "options": "generation.options",
    "server": "server.load",
    "memory": "generation.memory",
    "speech": "speech.quality",
    "layouts": "speech.layouts",
    "fine-codes": "speech.fine_codes",
    "voices": "speech.voices",
    "coarse-windows": "speech.coarse_windows",
    "gpu": "gpu.run",
    "gpu-plots": "gpu.plots",
    "summarise": "report.summarise",
    "report": "report.page",
}


def main(arguments: list[str]) -> int:
    """Run the command that is named first; exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"benchmarks: expected one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        return 2
    if is_suite(name):
        import pytest

        return pytest.main([str(file_of(name)), "--benchmark-only", *rest])
    # As argparse names the command in its messages.
    sys.argv = [f"python -m benchmarks {name}", *rest]
    return importlib.import_module(f"benchmarks.{COMMANDS[name]}").main() or 0


def listing() -> str:
    """Each command with the first sentence of its module, without importing any."""
    lines = [f"  {name:14} {purpose(name)}" for name in COMMANDS]
    return "\n".join(["python -m benchmarks NAME [ARGUMENTS]; --help after a name tells more", "", *lines])


def purpose(name: str) -> str:
    return (ast.get_docstring(ast.parse(file_of(name).read_text())) or "").split("\n")[0]


def file_of(name: str) -> Path:
    return FOLDER.joinpath(*COMMANDS[name].split(".")).with_suffix(".py")


def is_suite(name: str) -> bool:
    return file_of(name).name.startswith("bench_")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
