"""Whole generations, stock and accelerated in turns in one process: seconds per stage, and when the first sound comes.

python -m benchmarks generation --suite --json benchmarks/results/cpu_generation.json
python -m benchmarks generation --seconds 5 --json benchmarks/results/cpu_generation.json
python -m benchmarks generation --json benchmarks/results/cpu_generation.json --plots docs

The first form measures all the cases below, the second one case; each adds its record to the file as soon as it is
done. The third draws what is there.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import accelerate_bark, acceleration_report, stream_speed
from bark_accel.bench.baselines import BASELINES
from bark_accel.bench.measure import (
    Run,
    commit,
    judge_tokens,
    machine_facts,
    run_once,
    spread_of,
    token_differences,
    versions,
    warm_up,
)
from bark_accel.bench.models import fake_inputs, quiet_transformers, random_bark, semantic_tokens, shared_copy
from bark_accel.cli.demo import TEXT
from benchmarks.generation.mode_names import some_of
from benchmarks.generation.plots import save_stages, save_timeline
from benchmarks.generation.timeline import Timeline, run_stream

SMALLEST = {"weights": "w8a8", "kv_cache_dtype": "int8"}
# As arguments of accelerate_bark.
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, no drafts": {"speculate": False},
    "float16": {"weights": "float16"},
    "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"},
    "w8a8": {"weights": "w8a8"},
    "int8 with int8 cache": {"weights": "int8", "kv_cache_dtype": "int8"},
    "w8a8 with int8 cache": SMALLEST,
    "w8a8 with int8 cache fitting windows": {**SMALLEST, "fit_windows": True},
    "w8a8 with int8 cache fitting and long windows": {**SMALLEST, "fit_windows": True, "long_coarse_windows": True},
    "int8 fitting windows": {"weights": "int8", "fit_windows": True},
    "w8a8 fitting windows": {"weights": "w8a8", "fit_windows": True},
    "float32 long coarse windows": {"long_coarse_windows": True},
    "int8 long coarse windows": {"weights": "int8", "long_coarse_windows": True},
    "int8 fitting and long windows": {"weights": "int8", "fit_windows": True, "long_coarse_windows": True},
    "w8a8 fitting and long windows": {"weights": "w8a8", "fit_windows": True, "long_coarse_windows": True},
}
# As arguments of AudioStreamer.
STREAMS: dict[str, dict[str, Any]] = {
    "preview": {"policy": "preview"},
    "preview, interleave": {"policy": "preview", "interleave": True},
    "low_latency": {"policy": "low_latency"},
    "low_latency, interleave": {"policy": "low_latency", "interleave": True},
    "low_latency, smooth": {"policy": "low_latency", "start": "smooth"},
    "low_latency, interleave, smooth": {"policy": "low_latency", "interleave": True, "start": "smooth"},
    "exact": {"policy": "exact"},
}


@dataclass(frozen=True)
class Case:
    """Case that is measured; `preset`: with a voice preset that fills every history window."""

    seconds: float
    preset: bool
    batch: int
    shape: str


PRECISIONS = ("float32", "float16", "int8")
BOTH = ("float32", "int8")


@dataclass(frozen=True)
class Measurement:
    """A case, its modes, what is streamed of it in which of the modes, and how often."""

    case: Case
    modes: Sequence[str] = PRECISIONS
    streams: Sequence[str] = ()
    streamed_modes: Sequence[str] = BOTH
    repeats: int = 1


SUITE = (
    Measurement(
        Case(5, False, 1, "bark-small"),
        modes=(*BASELINES, *PRECISIONS),
        streams=("preview", "low_latency"),
        repeats=2,
    ),
    Measurement(
        Case(10, True, 1, "bark-small"),
        modes=("int8",),
        streams=("preview", "preview, interleave", "low_latency, interleave"),
    ),
    Measurement(
        Case(10, False, 1, "bark-small"),
        streams=("preview", "low_latency", "low_latency, interleave"),
        streamed_modes=("int8",),
    ),
    Measurement(Case(5, True, 1, "bark-small"), modes=(*BASELINES, *PRECISIONS), streams=("preview, interleave",)),
    Measurement(Case(2, False, 1, "bark-small"), streams=("preview", "low_latency", "exact"), repeats=2),
    Measurement(Case(2, False, 1, "bark")),
    Measurement(Case(2, False, 8, "bark-small")),
    Measurement(Case(14, False, 1, "bark-small"), streams=("preview",), streamed_modes=("int8",)),
)


def full_preset() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1024, (8, 600), generator=rng)
    semantic = torch.randint(0, 10_000, (400,), generator=rng)
    return {"semantic_prompt": semantic, "coarse_prompt": codes[:2].clone(), "fine_prompt": codes}


def arguments_of(case: Case, model: BarkModel) -> dict[str, Any]:
    arguments: dict[str, Any] = {k: v.repeat(case.batch, 1) for k, v in fake_inputs(model, TEXT).items()}
    arguments["semantic_max_new_tokens"] = semantic_tokens(model, case.seconds)
    if case.preset:
        arguments["history_prompt"] = full_preset()
    return arguments


def measure(wanted: Measurement) -> dict[str, Any]:
    """Stock, then every mode and every way of streaming it, `repeats` times over."""
    case, modes, repeats = wanted.case, wanted.modes, wanted.repeats
    quiet_transformers()
    stock = random_bark(case.shape)
    models = {mode: model_of(mode, stock) for mode in modes}
    arguments = arguments_of(case, stock)
    for model in (stock, *models.values()):
        warm_up(model, arguments)
    for mode in wanted.streamed_modes if wanted.streams else ():
        stream_speed(models[mode], rows=case.batch)
    runs: dict[str, list[Run]] = {name: [] for name in ("stock", *modes)}
    timelines: dict[str, list[Timeline]] = {}
    differences: dict[str, list[str]] = {mode: [] for mode in modes}
    ties: list[str] = []
    for seed in range(repeats):
        for name, model in {"stock": stock, **models}.items():
            runs[name].append(run_once(model, arguments, seed))
            print(f"{name}: {runs[name][-1].total_s:.2f} s", flush=True)
        for mode in modes:
            pair = runs["stock"][-1], runs[mode][-1]
            if mode in BASELINES or MODES[mode].keys() & {
                "weights",
                "fit_windows",
                "long_coarse_windows",
                "kv_cache_dtype",
            }:
                differences[mode] += token_differences(*pair)
            else:
                verdict = judge_tokens(stock, arguments, seed, *pair)
                differences[mode] += verdict.wrong
                ties += verdict.ties
            for stream in wanted.streams if mode in wanted.streamed_modes else ():
                timeline = run_stream(models[mode], STREAMS[stream], arguments)
                timelines.setdefault(f"{mode}, {stream}", []).append(timeline)
                print(
                    f"{mode}, {stream}: first {timeline.chunks[0].ready_s:.2f} s of {timeline.total_s:.2f} s",
                    flush=True,
                )
    return {
        **asdict(case),
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "repeats": repeats,
        "audio_s": runs["stock"][0].audio_s,
        "modes": {name: mode_summary(runs["stock"], its) for name, its in runs.items()},
        "token_differences": differences,
        "ties": ties,
        "drafts": {mode: drafts(model) for mode, model in models.items() if mode not in BASELINES},
        "streams": {name: stream_summary(its, runs["stock"]) for name, its in timelines.items()},
    }


def model_of(mode: str, stock: BarkModel) -> BarkModel:
    """The model of a mode: a baseline's own copy, or an accelerated one on stock's weights."""
    if mode in BASELINES:
        return BASELINES[mode](stock)
    return accelerate_bark(shared_copy(stock), strict=True, **MODES[mode])


def mode_summary(stock: Sequence[Run], runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds of each stage and in all: median, p20, p80; how many times faster than stock."""
    seconds = {stage: asdict(spread_of([run.seconds[stage] for run in runs])) for stage in runs[0].seconds}
    total = spread_of([run.total_s for run in runs])
    ratio = spread_of([run.total_s for run in stock]).median / total.median
    return {**seconds, "total": asdict(total), "times_faster": ratio}


def stream_summary(timelines: Sequence[Timeline], stock: Sequence[Run]) -> dict[str, Any]:
    """Summarise the run with the median first sound, in seconds and in shares of stock's whole time."""
    typical = sorted(timelines, key=lambda t: t.chunks[0].ready_s)[len(timelines) // 2]
    stock_s = spread_of([run.total_s for run in stock]).median
    first_s = typical.chunks[0].ready_s
    return {
        "first_sound_s": first_s,
        "first_sound_of_stock": first_s / stock_s,
        "total_s": typical.total_s,
        "total_of_stock": typical.total_s / stock_s,
        **typical.gaps_s,
        "underruns": len(typical.underruns_s),
        "stalled_s": sum(typical.underruns_s),
        "chunks": [asdict(chunk) for chunk in typical.chunks],
        "plan": None if typical.plan is None else asdict(typical.plan),
    }


def drafts(model: BarkModel) -> dict[str, float]:
    """Share of the drafts that were right, by stage."""
    counted = [(s.stage, s.drafts) for s in acceleration_report(model).stages if s.drafts and s.drafts.drafted_tokens]
    return {stage: counts.accepted_tokens / counts.drafted_tokens for stage, counts in counted}


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Replace the record of the same case, or append."""
    fields = Case.__dataclass_fields__
    key = [record[name] for name in fields]
    records = [r for r in read_records(path) if [r[name] for name in fields] != key]
    records = sorted([*records, record], key=lambda r: [r[name] for name in ("shape", "batch", "preset", "seconds")])
    path.write_text(json.dumps(records, indent=1) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="store_true", help="all the cases of the README")
    parser.add_argument("--seconds", type=float, help="measure one case of this length")
    parser.add_argument("--preset", action="store_true", help="with a full-size voice preset")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shape", default="bark-small")
    every_mode = [*BASELINES, *MODES]
    parser.add_argument(
        "--modes",
        default=list(PRECISIONS),
        help=f"of {'; '.join(every_mode)} (separated by ;)",
        type=some_of(every_mode),
    )
    parser.add_argument(
        "--streams", default=[], help=f"of {'; '.join(STREAMS)} (separated by ;)", type=some_of(STREAMS)
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plots", type=Path, help="folder for stage_times.png and streaming.png")
    options = parser.parse_args()
    wanted = list(SUITE) if options.suite else []
    if options.seconds is not None:
        ours = [mode for mode in options.modes if mode in MODES]
        case = Case(options.seconds, options.preset, options.batch, options.shape)
        wanted.append(Measurement(case, options.modes, options.streams, ours, options.repeats))
    for measurement in wanted:
        # An accelerated model and its patches refer to each other.
        gc.collect()
        print(measurement.case, flush=True)
        add_record(options.json, measure(measurement))
    if options.plots is not None:
        save_plots(options.plots, read_records(options.json))


def save_plots(folder: Path, records: list[dict[str, Any]]) -> None:
    """The stages of the 5 s utterance without a preset, and all streams."""
    save_stages(folder / "stage_times.png", next(r for r in records if (r["seconds"], r["preset"]) == (5, False)))
    save_timeline(folder / "streaming.png", [r for r in records if r["streams"]])
