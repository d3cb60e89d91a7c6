"""Cells that several tables of the page have."""

from __future__ import annotations

from typing import Any


def measured_on(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads; torch {versions['torch']}, Transformers "
        f"{versions['transformers']}, commit {(record['commit'] or 'unknown')[:10]}."
    )


def seconds(spread: dict[str, float]) -> str:
    same = spread["p20"] == spread["p80"]
    return f"{spread['median']:.2f}" + ("" if same else f" ({spread['p20']:.2f} to {spread['p80']:.2f})")


def case(record: dict[str, Any]) -> str:
    extras = [record["shape"]] if record["shape"] != "bark-small" else []
    extras += [f"batch of {record['batch']}"] if record["batch"] > 1 else []
    extras += ["full preset"] if record["preset"] else []
    return ", ".join([f"{record['seconds']:g} s", *extras])
