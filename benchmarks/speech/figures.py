"""Table and plot of what `quality.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RATES = ("digits", "phrases", "all")
# What the others are compared with.
_BASELINES = ("stock", "stock, slt", "stock, rms")


def table(ways: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| | words | digits | phrases | all | above stock, points | ended | length of stock's | same fine codes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, its in ways.items():
        rates = " | ".join(_percent(its["word_error_rate"][kind]) for kind in RATES)
        codes = "" if its["same_fine_codes"] is None else f"{its['same_fine_codes']:.0%}"
        lines.append(
            f"| {name} | {its['words']} | {rates} | {_points(name, its)} | {its['ended']:.1%} | "
            f"{its['length_of_stock']:.3f} | {codes} |"
        )
    return "\n".join(lines)


def save_plot(path: Path, ways: dict[str, dict[str, Any]]) -> None:
    """A point a way: its word error rate, whiskers of the 95 % interval."""
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.27 * len(ways)), layout="constrained")
    for line, (name, its) in enumerate(ways.items()):
        rate, (low, high) = its["word_error_rate"]["all"]["rate"], its["word_error_rate"]["all"]["interval"]
        colour = "#9aa5b1" if name.startswith("stock") else "#2ca02c" if "preview" in name else "#1f77b4"
        axes.errorbar(
            100 * rate, line, xerr=[[100 * (rate - low)], [100 * (high - rate)]], fmt="o", color=colour, capsize=3
        )
    axes.axvline(100 * next(iter(ways.values()))["word_error_rate"]["all"]["rate"], color="#9aa5b1", linewidth=0.8)
    axes.set_yticks(range(len(ways)), list(ways))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("word error rate of the small Bark, % (less is better), 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _percent(its: dict[str, Any]) -> str:
    low, high = its["interval"]
    return f"{its['rate']:.1%} ({low:.1%} to {high:.1%})"


def _points(name: str, its: dict[str, Any]) -> str:
    if name in _BASELINES:
        return ""
    low, high = (100 * bound for bound in its["above_stock"]["interval"])
    return f"{100 * its['above_stock']['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
