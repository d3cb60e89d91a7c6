"""Pictures of the records that `utterances.py` writes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

from bark_accel import StreamPlan
from benchmarks.generation.load_figures import speech_alone
from benchmarks.generation.timeline import Chunk, Timeline

matplotlib.use("Agg")
from matplotlib import pyplot

STREAM_COLOURS = {"exact": "#9467bd", "low_latency": "#1f77b4", "preview": "#2ca02c"}
WAY_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#17becf")
STAGE_COLOURS = {"semantic": "#1f77b4", "coarse": "#ff7f0e", "fine": "#2ca02c", "codec": "#9467bd"}


def save_stages(path: Path, record: dict[str, Any]) -> None:
    """One bar a mode, its stages one after another, and how many times faster than stock it is."""
    modes = record["modes"]
    figure, axes = pyplot.subplots(figsize=(9, 1.3 + 0.5 * len(modes)), layout="constrained")
    for line, mode in enumerate(modes.values()):
        start = 0.0
        for stage, colour in STAGE_COLOURS.items():
            seconds = mode[stage]["median"]
            axes.barh(line, seconds, left=start, color=colour, height=0.6, label=stage if line == 0 else None)
            start += seconds
        axes.annotate(f"{start:.1f} s, {mode['times_faster']:.1f}x", (start, line), (4, -3), textcoords="offset points")
    axes.set_yticks(range(len(modes)), list(modes))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    preset = "a full voice preset" if record["preset"] else "no voice preset"
    axes.set_title(
        f"{record['shape']}, {record['seconds']:g} s of speech, {preset}, {record['machine']['cpu']}", fontsize=10
    )
    axes.set_xlabel("seconds (less is better)")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def save_timeline(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One line a stream: each chunk planned (rings), ready (ticks) and playing (bars), and stock's whole time (dot)."""
    lines = [(record, name, its) for record in records for name, its in record["streams"].items()]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.32 * len(lines)), layout="constrained")
    for line, (record, name, its) in enumerate(lines):
        plan = StreamPlan(**its["plan"]) if its.get("plan") else None
        timeline = Timeline(tuple(Chunk(**chunk) for chunk in its["chunks"]), its["total_s"], plan)
        bars = [(start, c.audio_s) for start, c in zip(timeline.plays_at_s, timeline.chunks, strict=True)]
        colour = next(colour for policy, colour in STREAM_COLOURS.items() if policy in name)
        axes.broken_barh(bars, (line - 0.3, 0.45), color=colour, edgecolor="white", linewidth=0.5)
        axes.plot([c.ready_s for c in timeline.chunks], [line + 0.3] * len(bars), "|", color="#333333", markersize=6)
        planned = timeline.planned_at_s
        axes.plot(planned, [line + 0.3] * len(planned), "o", color="#333333", markersize=4, fillstyle="none")
        axes.plot(record["modes"]["stock"]["total"]["median"], line, "o", color="#9aa5b1")
    axes.set_yticks(range(len(lines)), [_label(record, name) for record, name, _ in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(
        "seconds after the call (bars: sound; ticks: a chunk is ready; rings: planned; grey: stock has all of it)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def save_load(path: Path, record: dict[str, Any]) -> None:
    """Throughput by rows, beside one after the other, and first sound by offered load, of each way."""
    figure, (rate, first) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    measured = [its for its in record["ways"] if its["closed"]]
    for colour, its in zip(cycle(WAY_COLOURS), measured, strict=False):
        closed = sorted(its["closed"], key=lambda figures: figures["rows"])
        rows = [figures["rows"] for figures in closed]
        rate.plot(rows, [f["speech_a_second"] for f in closed], "o-", color=colour, label=its["way"])
        rate.plot(rows, [speech_alone(its)] * len(rows), ":", color=colour)
        for quantile, style in (("p50", "o-"), ("p95", "x--")):
            for at in sorted({figures["rows"] for figures in its["open"]}):
                line = sorted((f for f in its["open"] if f["rows"] == at), key=lambda f: f["load"])
                times = [f[f"first_sound_{quantile}_s"] for f in line]
                label = f"{its['way']}, {at} rows, {quantile}"
                first.plot([f["load"] for f in line], times, style, color=colour, label=label)
    every = sorted({figures["rows"] for its in measured for figures in its["closed"]})
    rate.set_xscale("log", base=2)
    rate.set_xticks(every, every)
    rate.set_xlabel("rows of the engine (dotted: generate, one after the other)")
    rate.set_ylabel("seconds of speech a second (more is better)")
    first.set_xlabel("offered load, of one after the other's throughput")
    first.set_ylabel("first sound, s (less is better)")
    figure.suptitle(f"{record['shape']}, {record['requests']} requests, {record['machine']['cpu']}", fontsize=10)
    for axes in (rate, first):
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(record: dict[str, Any], name: str) -> str:
    return f"{record['seconds']:g} s{', preset' if record['preset'] else ''}: {name}"
