"""Reduces a pytest-benchmark JSON to medians, ratios and shares of the ceilings, with machine, versions and commit.

python -m benchmarks summarise FULL.json SUMMARY.json      also prints a table
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bark_accel.bench.measure import commit, machine_facts, spread_of, versions
from benchmarks.ops.interleaved import PROBE_BYTES, STEP, WIDER_CACHE, GemmProbe


def summarise(full: dict[str, Any]) -> dict[str, Any]:
    groups = {benchmark["group"]: _group(benchmark) for benchmark in full["benchmarks"]}
    return {"machine": machine_facts(), "versions": versions(), "commit": commit(), "groups": groups}


def _group(benchmark: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of ours and of each baseline; how many times faster than the first baseline ours is."""
    facts, data = benchmark["extra_info"], benchmark["stats"]["data"]
    baselines: dict[str, list[float]] = facts["baselines"]
    timed = {"bark_accel": data, **baselines}
    spreads = {name: spread_of(seconds) for name, seconds in timed.items()}
    ours, first = spreads["bark_accel"].median, next(iter(baselines))
    found: dict[str, Any] = {
        "microseconds": {
            name: {key: round(1e6 * value, 1) for key, value in asdict(spread).items()}
            for name, spread in spreads.items()
        },
        "times_faster": round(spreads[first].median / ours, 2),
        "than": first,
        "rounds": len(data),
    }
    if "bytes_read" in facts:
        probe = PROBE_BYTES / spreads["read probe"].median
        found["read_probe_gb_s"] = round(probe / 1e9, 1)
        found["of_read_probe"] = round(facts["bytes_read"] / ours / probe, 3)
    if STEP in spreads:
        found["of_a_step"] = round(ours / spreads[STEP].median, 3)
    if WIDER_CACHE in spreads:
        found["of_a_wider_cache"] = round(ours / spreads[WIDER_CACHE].median, 3)
    if "multiply_adds" in facts:
        found["gop_s"] = round(2 * facts["multiply_adds"] / ours / 1e9)
    if "GEMM probe" in spreads:
        found["gemm_probe_gflop_s"] = round(2 * GemmProbe.multiply_adds / spreads["GEMM probe"].median / 1e9)
    return found


def table(summary: dict[str, Any]) -> str:
    """Milliseconds, in Markdown."""
    lines = ["| | stock, ms | bark_accel, ms | ratio | of the read probe |", "|---|---|---|---|---|"]
    for name, group in summary["groups"].items():
        cells = [_cell(group["microseconds"][side]) for side in (group["than"], "bark_accel")]
        share = f"{group['of_read_probe']:.0%}" if "of_read_probe" in group else ""
        name += f" ({group['of_a_step']:.2f} of a step's time)" if "of_a_step" in group else ""
        if "of_a_wider_cache" in group:
            name += f" ({group['of_a_wider_cache']:.2f} of the time with {WIDER_CACHE})"
        lines.append(f"| {name} | {' | '.join(cells)} | {group['times_faster']:.2f}x | {share} |")
    return "\n".join(lines)


def _cell(spread: dict[str, float]) -> str:
    median, p20, p80 = (f"{spread[key] / 1e3:.3g}" for key in ("median", "p20", "p80"))
    return f"{median} ({p20} to {p80})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="JSON file that pytest-benchmark has written")
    parser.add_argument("target", type=Path, help="summary, JSON")
    given = parser.parse_args()
    result = summarise(json.loads(given.source.read_text()))
    given.target.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
