"""Runs the parity suite with each supported version of Transformers: `make matrix`.

Every version gets an environment of its own under build/matrix, on top of the one that runs this script: torch, numpy
and pytest are shared. `--python PATH` takes another environment instead, as it is, with bark_accel built in place: for
another torch. Results are kept until the code changes, so an interrupted run goes on where it stopped; they make
up benchmarks/results/versions.json and the table in docs/versions.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import site
import subprocess
import sys
import time
import venv
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from packaging.version import Version

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / "build" / "matrix"
TABLE = ROOT / "benchmarks" / "results" / "versions.json"
DOCUMENT = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- versions: begin, written by make matrix -->\n", "<!-- versions: end -->\n"
VERSIONS = ("4.46.3", "4.49.0", "4.52.4", "4.57.6", "5.0.0", "5.17.0", "5.23.0", "5.24.0")
# All that runs stock beside us or reads its objects, but for what asks more of torch or of time than of Transformers.
FULL = [f"tests/{name}" for name in ("batches", "patching", "streaming", "stages", "long_text", "suno")]
FULL += ["tests/bench/test_measure.py", "tests/bench/test_bench_models.py", "tests/cli/test_demo.py"]
FULL += ["-k", "not (compile_backend or bark_small_shapes or fifty_generations)"]
QUICK = [
    f"tests/patching/test_{name}.py"
    for name in ("bad_input", "refused_models", "fallback", "lifecycle", "submodels", "equality")
]
QUICK += ["-k", "not (bark_small or longest or rows_that_end or every_length or presets_of_any or sunos_layout)"]
CODE = ("bark_accel", "csrc", "tests")
SHOWN = ("transformers", "tokenizers", "huggingface_hub", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", action="append", choices=VERSIONS, help="this version; may be repeated")
    parser.add_argument("--quick", action="store_true", help="equality, fallback, lifecycle, bad input; no table")
    parser.add_argument("--fresh", action="store_true", help="run again what was run on this code")
    which.add_argument("--python", type=Path, help="of an environment with all that is needed")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the tests")
    options = parser.parse_args()
    # Not resolved: an environment's interpreter is a link.
    pythons = [options.python.absolute()] if options.python else map(_python, options.only or VERSIONS)
    results = [_result(python, options.quick, options.fresh, options.jobs) for python in pythons]
    if not options.quick:
        _write_table(results)
    print(render(results))
    print(f"{sum(len(r['ties']) for r in results)} tokens differ from stock's because of ties")
    return int(any(r["failed"] or not r["passed"] for r in results))


def render(results: list[dict[str, Any]]) -> str:
    """A markdown table."""
    counts = ("passed", "failed", "skipped", "commit")
    lines = [f"| Transformers | {' | '.join((*SHOWN[1:], *counts))} |", "|" + "---|" * (len(SHOWN) + len(counts))]
    for result in results:
        # The rows of earlier runs name no commit.
        cells = [*(result["versions"][name] for name in SHOWN), *(result.get(count, "") for count in counts)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _result(python: Path, quick: bool, fresh: bool, jobs: int = 1) -> dict[str, Any]:
    """Of the suite with this interpreter; from the file it left behind where nothing has changed since."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    versions, code = _versions(python), _code_hash()
    name = f"{versions['transformers']}-torch-{versions['torch']}"
    file = ENVIRONMENTS / f"{name}{'-quick' if quick else ''}.json"
    if file.exists() and not fresh:
        kept = json.loads(file.read_text())
        if kept["code"] == code and kept["versions"] == versions:
            return kept
    result = {**_run(python, versions, QUICK if quick else FULL, jobs), "code": code, "commit": _commit()}
    file.write_text(json.dumps(result, indent=1))
    return result


def _code_hash() -> str:
    files = sorted(
        path for name in _git("ls-files", "-co", "--exclude-standard", *CODE).split() if (path := ROOT / name).is_file()
    )
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _commit() -> str:
    """Of the code: the rows that other runs have written meanwhile leave it as it is."""
    changed = _git("status", "--porcelain", "--", *CODE)
    return _git("rev-parse", "--short", "HEAD").strip() + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True)


def _python(version: str) -> Path:
    """The interpreter that has this version of Transformers."""
    if importlib.metadata.version("transformers") == version:
        return Path(sys.executable)
    home = ENVIRONMENTS / version
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        print(f"== installing Transformers {version}", flush=True)
        make_environment(home)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, f"transformers=={version}"], check=True)
        ready.touch()
    return python


def make_environment(home: Path) -> None:
    """An environment in which the packages of this one are found after its own."""
    venv.create(home, clear=True, symlinks=True)
    python = home / "bin" / "python"
    here = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    (Path(here.strip()) / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")


def _versions(python: Path) -> dict[str, str]:
    ask = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    return json.loads(subprocess.check_output([python, "-c", ask], text=True))


def _run(python: Path, versions: dict[str, str], selection: list[str], jobs: int) -> dict[str, Any]:
    print(f"== Transformers {versions['transformers']}: pytest {' '.join(selection)}", flush=True)
    start = time.monotonic()
    report = ENVIRONMENTS / f"{versions['transformers']}.xml"
    report.unlink(missing_ok=True)
    shared = ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *shared, *selection]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, check=False)
    return {"versions": versions, **counted(report), "seconds": round(time.monotonic() - start)}


def counted(report: Path) -> dict[str, Any]:
    """Numbers and names of tests in a junit report, and the ties that explain tokens that differ from stock's."""
    suite = ElementTree.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    bad = [f"{c.get('classname')}.{c.get('name')}" for c in cases if {"failure", "error"} & {part.tag for part in c}]
    reasons = Counter(str(part.get("message")) for part in suite.iter("skipped"))
    return {
        "passed": len(cases) - len(bad) - sum(reasons.values()),
        "failed": len(bad),
        "skipped": sum(reasons.values()),
        "failures": bad,
        "skip_reasons": dict(reasons),
        "ties": [
            f"{c.get('name')}: {p.get('value')}" for c in cases for p in c.iter("property") if p.get("name") == "tie"
        ],
    }


def _write_table(results: list[dict[str, Any]]) -> None:
    """Write benchmarks/results/versions.json and docs/versions.md; the rows of other versions stay."""
    rows = {_key(row): row for row in load_table()}
    rows |= {_key(result): {k: v for k, v in result.items() if k != "code"} for result in results}
    ordered = [rows[key] for key in sorted(rows)]
    TABLE.write_text(json.dumps(ordered, indent=1) + "\n")
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{render(ordered)}\n{END}{rest.partition(END)[2]}")


def _key(row: dict[str, Any]) -> tuple[Version, ...]:
    """Transformers and torch, whatever torch was built for."""
    return tuple(Version(Version(row["versions"][name]).public) for name in ("transformers", "torch"))


def load_table() -> list[dict[str, Any]]:
    """The rows of the last run."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else []


if __name__ == "__main__":
    sys.exit(main())
