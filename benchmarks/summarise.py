"""Reduces a pytest-benchmark JSON to medians by group, with machine, versions and commit.

python benchmarks/summarise.py FULL.json SUMMARY.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bark_accel.cli.measure import commit, machine_facts, versions


def summarise(full: dict[str, Any]) -> dict[str, Any]:
    """Median, first and third quartile in microseconds of each benchmark."""
    groups: dict[str, dict[str, Any]] = {}
    for benchmark in full["benchmarks"]:
        stats = benchmark["stats"]
        microseconds = {key: round(1e6 * stats[key], 1) for key in ("median", "q1", "q3")}
        groups.setdefault(benchmark["group"], {})[benchmark["name"]] = {**microseconds, "rounds": stats["rounds"]}
    return {"machine": machine_facts(), "versions": versions(), "commit": commit(), "microseconds": groups}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(summarise(json.loads(source.read_text())), indent=2) + "\n")
