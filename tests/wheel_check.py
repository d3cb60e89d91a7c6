"""Installs a wheel into environments of several torches and Pythons, and runs the ops and the core of the parity suite.

`make wheel`, then `python tests/wheel_check.py dist/*.whl ENVIRONMENT/bin/python ...`. Each environment has torch,
Transformers, pytest, hypothesis, scipy and, for its voices, bark (as `make test` installs it); bark_accel comes from
the wheel, for the tests run from a copy without the sources beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matrix import QUICK, ROOT, counted

# A wheel is stripped, and no sources are beside it: nothing to disassemble by name or to compile.
OPS = ["tests/ops", "--ignore=tests/ops/test_disassembly.py"]
SHOWN = "import sys, json, platform, torch, transformers as t; v = sys.version_info; "
SHOWN += "print(json.dumps([platform.libc_ver()[1], f'{v.major}.{v.minor}', torch.__version__, t.__version__]))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pythons", type=Path, nargs="+", metavar="python")
    parser.add_argument("--ops", action="store_true", help="the ops alone")
    options = parser.parse_args()
    # Not resolved: an environment's interpreter is a link.
    results = [check(options.wheel.resolve(), python.absolute(), options.ops) for python in options.pythons]
    print(render(results))
    return int(any(result["failed"] or not result["passed"] for result in results))


def check(wheel: Path, python: Path, ops_only: bool) -> dict[str, Any]:
    """Versions and counts of one environment."""
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, wheel], check=True)
    shown = json.loads(subprocess.check_output([python, "-c", SHOWN], text=True))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", f"{folder}/tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        counts = [_count(python, part, Path(folder)) for part in ([OPS] if ops_only else [OPS, QUICK])]
    sums = {name: sum(count[name] for count in counts) for name in ("passed", "failed", "skipped")}
    return {"versions": shown, **sums, "failures": [name for count in counts for name in count["failures"]]}


def _count(python: Path, selection: list[str], folder: Path) -> dict[str, Any]:
    report = folder / "report.xml"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *selection]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": ""}, check=False)
    return counted(report)


def render(results: list[dict[str, Any]]) -> str:
    """A markdown table."""
    lines = ["| glibc | Python | torch | Transformers | passed | failed | skipped |", "|" + "---|" * 7]
    for result in results:
        cells = [*result["versions"], result["passed"], result["failed"], result["skipped"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
