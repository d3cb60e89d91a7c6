"""When sound comes: streamed audio against stock's whole time, random weights of real shapes.

python benchmarks/bench_streaming.py --seconds 5 --policy preview --json benchmarks/results/streaming.json
python benchmarks/bench_streaming.py --json benchmarks/results/streaming.json --plot docs/streaming.png

The first form measures stock and one policy in turns and adds a record to the file; the second draws what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import AudioStreamer, accelerate_bark, stream
from bark_accel.cli.demo import TEXT
from bark_accel.cli.measure import commit, machine_facts, read_weights, versions
from bark_accel.patches.checkpoints import fake_inputs, quiet_transformers, random_bark, semantic_tokens, twin
from bark_accel.streamer import POLICIES


@dataclass(frozen=True)
class Case:
    """What is measured; `preset`: with a voice preset that fills every history window."""

    seconds: float
    policy: str
    preset: bool
    interleave: bool
    shape: str
    dtype: str


@dataclass(frozen=True)
class Chunk:
    """Seconds after the call when it was ready, and its length in seconds of audio."""

    ready_s: float
    audio_s: float


@dataclass(frozen=True)
class Timeline:
    """One stream, played from its first chunk on: `stalls` are the seconds a listener waits before each later chunk."""

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
    def stalls_s(self) -> list[float]:
        ends = [t + c.audio_s for t, c in zip(self.plays_at_s, self.chunks, strict=True)]
        return [start - end for start, end in zip(self.plays_at_s[1:], ends, strict=False)]


def full_preset() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1024, (8, 600), generator=rng)
    semantic = torch.randint(0, 10_000, (400,), generator=rng)
    return {"semantic_prompt": semantic, "coarse_prompt": codes[:2].clone(), "fine_prompt": codes}


def run_stock(model: BarkModel, arguments: dict[str, Any]) -> float:
    torch.manual_seed(0)
    start = time.perf_counter()
    model.generate(**clone(arguments))
    return time.perf_counter() - start


def run_stream(model: BarkModel, case: Case, arguments: dict[str, Any]) -> Timeline:
    torch.manual_seed(0)
    streamer = AudioStreamer(model, policy=case.policy, interleave=case.interleave)
    start, chunks = time.perf_counter(), []
    for chunk in stream(model, streamer=streamer, **clone(arguments)):
        chunks.append(Chunk(time.perf_counter() - start, chunk.shape[1] / streamer.sampling_rate))
    return Timeline(tuple(chunks), time.perf_counter() - start)


def clone(arguments: dict[str, Any]) -> dict[str, Any]:
    """Transformers changes some of its arguments in place."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Stock and the stream in turns."""
    quiet_transformers()
    stock = random_bark(case.shape).to(getattr(torch, case.dtype))
    accelerated = accelerate_bark(twin(stock), strict=True)
    read_weights(stock)
    arguments: dict[str, Any] = fake_inputs(stock, TEXT)
    arguments["semantic_max_new_tokens"] = semantic_tokens(stock, case.seconds)
    if case.preset:
        arguments["history_prompt"] = full_preset()
    runs = [(run_stock(stock, arguments), run_stream(accelerated, case, arguments)) for _ in range(repeats)]
    return summary(case, runs)


def summary(case: Case, runs: Sequence[tuple[float, Timeline]]) -> dict[str, Any]:
    """Medians over the runs; the chunks are those of the run with the median first sound."""
    stock_s = statistics.median(s for s, _ in runs)
    typical = sorted((t for _, t in runs), key=lambda t: t.chunks[0].ready_s)[len(runs) // 2]
    gaps = [b.ready_s - a.ready_s for a, b in zip(typical.chunks, typical.chunks[1:], strict=False)]
    first_s = typical.chunks[0].ready_s
    total_s = statistics.median(t.total_s for _, t in runs)
    stalls = [s for s in typical.stalls_s if s > 0]
    return {
        **asdict(case),
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "repeats": len(runs),
        "stock_s": stock_s,
        "total_s": total_s,
        "total_of_stock": total_s / stock_s,
        "first_sound_s": first_s,
        "first_sound_of_stock": first_s / stock_s,
        "gap_p50_s": statistics.median(gaps) if gaps else None,
        "gap_p95_s": statistics.quantiles(gaps, n=20, method="inclusive")[-1] if len(gaps) > 1 else (gaps or [None])[0],
        "underruns": len(stalls),
        "stalled_s": sum(stalls),
        "chunks": [asdict(chunk) for chunk in typical.chunks],
    }


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Replace the record of the same case, or append."""
    fields = Case.__dataclass_fields__
    key = [record[name] for name in fields]
    records = [r for r in read_records(path) if [r[name] for name in fields] != key]
    path.write_text(json.dumps([*records, record], indent=2) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def save_timeline(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One line a case: when each chunk was ready (ticks), when it plays (bars), and stock's whole time (dot)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(POLICIES, ("#9467bd", "#1f77b4", "#2ca02c"), strict=True))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.45 * len(records)), layout="constrained")
    for line, record in enumerate(records):
        timeline = Timeline(tuple(Chunk(**chunk) for chunk in record["chunks"]), record["total_s"])
        bars = [(start, c.audio_s) for start, c in zip(timeline.plays_at_s, timeline.chunks, strict=True)]
        colour = colours[record["policy"]]
        axes.broken_barh(bars, (line - 0.3, 0.45), color=colour, edgecolor="white", linewidth=0.5)
        axes.plot([c.ready_s for c in timeline.chunks], [line + 0.3] * len(bars), "|", color="#333333", markersize=7)
        axes.plot(record["stock_s"], line, "o", color="#9aa5b1")
    axes.set_yticks(range(len(records)), [label(record) for record in records])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds after the call (bars: sound; ticks: a chunk is ready; grey: stock has its whole waveform)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def label(record: dict[str, Any]) -> str:
    extras = [name for name in ("preset", "interleave") if record[name]]
    return ", ".join([f"{record['seconds']:g} s", record["policy"], *extras])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="length of the utterance; without it nothing is measured")
    parser.add_argument("--policy", choices=POLICIES, default="low_latency")
    parser.add_argument("--preset", action="store_true", help="with a full-size voice preset")
    parser.add_argument("--interleave", action="store_true")
    parser.add_argument("--shape", default="bark-small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.seconds is not None:
        case = Case(options.seconds, options.policy, options.preset, options.interleave, options.shape, options.dtype)
        record = measure(case, options.repeats)
        add_record(options.json, record)
        print(json.dumps({k: v for k, v in record.items() if k not in ("chunks", "machine", "versions")}, indent=2))
    if options.plot is not None:
        order = sorted(read_records(options.json), key=lambda r: (r["seconds"], r["preset"], r["policy"]))
        save_timeline(options.plot, order)


if __name__ == "__main__":
    main()
