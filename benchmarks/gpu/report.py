"""The JSON file of a run, which is whole and valid after every row. Free of torch."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.limits import CUT_OFF, OK
from benchmarks.gpu.plan import Plan

ROW_TABLES = ("smoke", "generate", "decode_step", "first_sound", "kernels", "launches", "warmup", "engine", "docs")


class Report:
    """Collects what the processes send, and how each of them ended."""

    def __init__(self, path: Path, plan: Plan, gpu: dict[str, str]):
        self.path = path
        self._current: str | None = None
        self.content: dict[str, Any] = {
            "machine": gpu,
            "plan": json.loads(json.dumps(asdict(plan))),
            "read_bandwidth_bytes_per_s": None,
            "stages": [],
            "tests": {},
            **{table: [] for table in ROW_TABLES},
            "failed": [],
            "left_out": [],
            "left_out_for_lack_of_time": [],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        """Replace the file at once: whoever kills this process leaves the old one or the new one."""
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.write_text(json.dumps(self.content, indent=2) + "\n")
        os.replace(beside, self.path)

    def receive(self, message: tuple) -> None:
        """One message of `rows.Rows`."""
        kind, *rest = message
        if kind == "begin":
            self._current = rest[0]
            return
        if kind == "facts":
            self._add_facts(rest[0])
        elif kind == "row":
            table, row = rest
            self.content[table].append(row)
            print(f"{self._current}: {summary(row)}", flush=True)
            if "error" in row:
                self.content["failed"].append({"what": self._current, "error": row["error"]})
            # The row has its figures, of what it was not meant to measure.
            for fault in row.get("not_captured", ()):
                self.content["failed"].append({"what": f"{self._current}, a capture", "error": fault})
        else:
            self.content[kind].append(rest[0])
            print(f"{kind}: {rest[0]}", flush=True)
        self._current = None
        self.save()

    def stage(self, name: str, seconds: float, limit_s: float, outcome: str, may_be_late: bool = False) -> None:
        """Note how a part of the run ended; one that failed is named with what it was doing."""
        self.content["stages"].append({"name": name, "s": seconds, "limit_s": limit_s, "outcome": outcome})
        print(f"== {name}: {outcome}, {seconds:.1f} s", flush=True)
        if may_be_late and outcome.startswith(CUT_OFF):
            self.content["left_out_for_lack_of_time"].append(f"{name}: {outcome}")
        elif outcome != OK:
            self.fail(f"{name}: {self._current}" if self._current else name, outcome)
        self._current = None
        self.save()

    def fail(self, what: str, error: str) -> None:
        self.content["failed"].append({"what": what, "error": error})
        print(f"FAILED: {what}: {error}", flush=True)
        self.save()

    def add_tests(self, name: str, junit: Path) -> dict[str, Any]:
        """Take in what `junit` says, and name the tests that failed."""
        outcomes = test_outcomes(junit)
        self.content["tests"][name] = outcomes
        for test in outcomes.get("failed", []):
            self.fail(f"{name}: {test}", "see the log")
        if "error" in outcomes:
            self.fail(name, outcomes["error"])
        self.save()
        return outcomes

    def _add_facts(self, facts: dict[str, Any]) -> None:
        for key, value in facts.items():
            self.content[key] = {**self.content[key], **value} if key == "machine" else value


def test_outcomes(junit: Path) -> dict[str, Any]:
    """Read from a pytest run's `--junitxml` how many tests passed, failed and were skipped, and which failed.

    Without a whole file the run did not get to its end, and the outcome is an error.
    """
    try:
        cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    except (OSError, ElementTree.ParseError) as error:
        return {"error": f"{junit.name}: {error}"}
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in cases if {"failure", "error"} & {e.tag for e in c}]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def summary(row: dict[str, Any]) -> str:
    numbers = {k: v for k, v in row.items() if isinstance(v, float) or k == "error"}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())


def find_gpu() -> dict[str, str]:
    """Name and driver of the first GPU, compute capability of all, as nvidia-smi says; nothing without it or one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = [line.rsplit(", ", 2) for line in said.splitlines() if line.count(", ") >= 2]
    if not found:
        return {}
    name, driver, _ = found[0]
    return {"gpu": name, "driver": driver, "capability": ", ".join(sorted({capability for *_, capability in found}))}
