"""When the chunks of a stream were ready, and when a listener would hear them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import AudioStreamer, stream

COLOURS = {"exact": "#9467bd", "low_latency": "#1f77b4", "preview": "#2ca02c"}


@dataclass(frozen=True)
class Chunk:
    """Seconds after the call when it was ready, and its length in seconds of audio."""

    ready_s: float
    audio_s: float


@dataclass(frozen=True)
class Timeline:
    """One stream, played from its first chunk on."""

    chunks: tuple[Chunk, ...]
    total_s: float

    @property
    def plays_at_s(self) -> list[float]:
        times, free_s = [], 0.0
        for chunk in self.chunks:
            times.append(max(chunk.ready_s, free_s))
            free_s = times[-1] + chunk.audio_s
        return times

    @property
    def underruns_s(self) -> list[float]:
        """The seconds of silence before each chunk that came too late."""
        ends = [t + c.audio_s for t, c in zip(self.plays_at_s, self.chunks, strict=True)]
        silences = [start - end for start, end in zip(self.plays_at_s[1:], ends, strict=False)]
        return [s for s in silences if s > 1e-9]

    @property
    def gaps_s(self) -> dict[str, float | None]:
        """Median and 95th percentile of the time from chunk to chunk."""
        gaps = [b.ready_s - a.ready_s for a, b in zip(self.chunks, self.chunks[1:], strict=False)]
        many = len(gaps) > 1
        return {
            "gap_p50_s": statistics.median(gaps) if gaps else None,
            "gap_p95_s": statistics.quantiles(gaps, n=20, method="inclusive")[-1] if many else (gaps or [None])[0],
        }


def run_stream(model: BarkModel, options: dict[str, Any], arguments: dict[str, Any], seed: int = 0) -> Timeline:
    torch.manual_seed(seed)
    streamer = AudioStreamer(model, **options)
    # Transformers changes some of its arguments in place.
    arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    start, chunks = time.perf_counter(), []
    for chunk in stream(model, streamer=streamer, **arguments):
        chunks.append(Chunk(time.perf_counter() - start, chunk.shape[1] / streamer.sampling_rate))
    return Timeline(tuple(chunks), time.perf_counter() - start)


def save_timeline(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One line a stream: when each chunk was ready (ticks), when it plays (bars), and stock's whole time (dot)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [(record, name, its) for record in records for name, its in record["streams"].items()]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.32 * len(lines)), layout="constrained")
    for line, (record, name, its) in enumerate(lines):
        timeline = Timeline(tuple(Chunk(**chunk) for chunk in its["chunks"]), its["total_s"])
        bars = [(start, c.audio_s) for start, c in zip(timeline.plays_at_s, timeline.chunks, strict=True)]
        colour = next(colour for policy, colour in COLOURS.items() if policy in name)
        axes.broken_barh(bars, (line - 0.3, 0.45), color=colour, edgecolor="white", linewidth=0.5)
        axes.plot([c.ready_s for c in timeline.chunks], [line + 0.3] * len(bars), "|", color="#333333", markersize=6)
        axes.plot(record["modes"]["stock"]["total"]["median"], line, "o", color="#9aa5b1")
    axes.set_yticks(range(len(lines)), [_label(record, name) for record, name, _ in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds after the call (bars: sound; ticks: a chunk is ready; grey: stock has its whole waveform)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(record: dict[str, Any], name: str) -> str:
    return f"{record['seconds']:g} s{', preset' if record['preset'] else ''}: {name}"
