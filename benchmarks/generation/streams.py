"""Streams with a plan: first sound and the silence after it, in turns with stock's whole generation.

python -m benchmarks streams --json benchmarks/results/zen5_streams.json

Each round says every case in every mode and way once; the file is written after each of them. A round that may not end
within `--limit-s` is not begun.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import BarkModel

from bark_accel import accelerate_bark, long_form, stream_speed
from bark_accel.bench.measure import commit, machine_facts, run_once, spread_of, versions, warm_up
from bark_accel.bench.models import WordProcessor, quiet_transformers, random_bark, semantic_tokens, shared_copy
from bark_accel.cli.demo import TEXT
from benchmarks.generation.timeline import Timeline, run_stream
from benchmarks.generation.utterances import Case, arguments_of

MODES: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8", "fit_windows": True},
    "w8a8, kv int8": {"weights": "w8a8", "kv_cache_dtype": "int8", "fit_windows": True},
    # Beyond five seconds every window of Transformers' coarse stage has a prompt of some 890 tokens.
    "w8a8, kv int8, long coarse windows": {
        "weights": "w8a8",
        "kv_cache_dtype": "int8",
        "fit_windows": True,
        "long_coarse_windows": True,
    },
}
# As arguments of AudioStreamer.
WAYS: dict[str, dict[str, Any]] = {"plain": {"interleave": False}, "interleaved": {"interleave": True}}
# One coarse prompt before the first sound instead of two.
PRESET_WAYS = {**WAYS, "interleaved, first chunk of 15 frames": {"interleave": True, "first_chunk_frames": 15}}
SECONDS = (2.0, 5.0, 10.0, 14.0)
# Said by the plans of the longest, too: most speech ends sooner than it may.
ENDS_EARLY_S = 5.0
# Seconds of the first chunk of a long text.
LONG_TEXT_S = (3.0, 13.0)
STOCK_S = 2.0


@dataclass
class Streams:
    """The timelines of each mode and way by case, first sounds of long text, and stock's whole times."""

    timelines: dict[tuple[float, bool], dict[tuple[str, str], list[Timeline]]] = field(default_factory=dict)
    long_text: dict[float, dict[str, list[float]]] = field(default_factory=dict)
    stock_s: list[float] = field(default_factory=list)


def run_round(
    measured: Streams, stock: BarkModel, models: dict[str, BarkModel], cases: Sequence[Case], seed: int, stock_s: float
) -> None:
    """Say everything once more."""
    case = Case(stock_s, False, 1, "")
    measured.stock_s.append(run_once(stock, arguments_of(case, stock), seed).total_s)
    for case in cases:
        arguments, ways = arguments_of(case, stock), measured.timelines.setdefault((case.seconds, case.preset), {})
        for mode, model in models.items():
            for way, options in (PRESET_WAYS if case.preset else WAYS).items():
                timeline = run_stream(model, options, arguments, seed)
                ways.setdefault((mode, way), []).append(timeline)
                told = f"first sound {timeline.chunks[0].ready_s:.2f} s, silence {sum(timeline.underruns_s):.2f} s"
                print(f"{case.seconds:g} s{', preset' * case.preset}, {mode}, {way}: {told}", flush=True)
    say_with_longer_plans(measured, stock, models, seed)
    for seconds in LONG_TEXT_S:
        for mode, model in models.items():
            first_s = first_of_long_text(model, seconds, seed)
            measured.long_text.setdefault(seconds, {}).setdefault(mode, []).append(first_s)


def say_with_longer_plans(measured: Streams, stock: BarkModel, models: dict[str, BarkModel], seed: int) -> None:
    """Say the case of `ENDS_EARLY_S` as if the longest utterance had been allowed: by the plans of that one."""
    longest_s = max((seconds for seconds, preset in measured.timelines if not preset), default=0.0)
    ways = measured.timelines.get((ENDS_EARLY_S, False))
    if ways is None or longest_s <= ENDS_EARLY_S:
        return
    arguments = arguments_of(Case(ENDS_EARLY_S, False, 1, ""), stock)
    for mode, model in models.items():
        for way, options in WAYS.items():
            plan = measured.timelines[longest_s, False][mode, way][-1].plan
            timeline = run_stream(model, {**options, "plan": plan}, arguments, seed)
            ways.setdefault((mode, f"{way}, {longest_s:g} s allowed"), []).append(timeline)


def first_of_long_text(model: BarkModel, seconds: float, seed: int) -> float:
    """Seconds until the first sound of a long text whose first chunk has so many; a random model's never end early."""
    start = time.perf_counter()
    arguments = {"semantic_max_new_tokens": semantic_tokens(model, seconds)}
    text = long_form(model, WordProcessor(model), f"{TEXT}\n\n{TEXT}", seed=seed, stream=True, **arguments)
    pieces = iter(text)
    next(piece for piece in pieces if len(piece.audio))
    first_s = time.perf_counter() - start
    pieces.close()
    return first_s


def summary(measured: Streams, stock_s: float) -> dict[str, Any]:
    """Medians and spreads of all rounds."""
    cases = [
        {
            "seconds": seconds,
            "preset": preset,
            "ways": [{"mode": mode, "way": way, **_summed(its)} for (mode, way), its in ways.items()],
        }
        for (seconds, preset), ways in measured.timelines.items()
    ]
    long_text = [
        {"seconds": seconds, "mode": mode, "first_sound_s": asdict(spread_of(its))}
        for seconds, modes in measured.long_text.items()
        for mode, its in modes.items()
    ]
    return {
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "rounds": len(measured.stock_s),
        "stock": {"seconds": stock_s, "total_s": asdict(spread_of(measured.stock_s))},
        "cases": cases,
        "long_text": long_text,
    }


def _summed(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Spreads, and the plan of the first round (its speed is kept for the others)."""
    first = timelines[0]
    return {
        "first_sound_s": asdict(spread_of([its.chunks[0].ready_s for its in timelines])),
        "silence_s": asdict(spread_of([sum(its.underruns_s) for its in timelines])),
        "total_s": asdict(spread_of([its.total_s for its in timelines])),
        "plan": None if first.plan is None else asdict(first.plan),
        "chunks_s": [chunk.audio_s for chunk in first.chunks],
    }


def measure(
    stock: BarkModel,
    cases: Sequence[Case],
    *,
    rounds: int,
    limit_s: float,
    stock_s: float,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Measure up to `rounds` rounds, as many as fit into the limit; `write` gets the summary after each."""
    start = time.monotonic()
    models = {mode: accelerate_bark(shared_copy(stock), strict=True, **given) for mode, given in MODES.items()}
    for model in (stock, *models.values()):
        warm_up(model, arguments_of(Case(stock_s, False, 1, ""), stock))
    for model in models.values():
        stream_speed(model)
    measured, longest_s = Streams(), 0.0
    for seed in range(rounds):
        begun = time.monotonic()
        if seed and begun + longest_s - start > limit_s:
            break
        # An accelerated model and its patches refer to each other.
        gc.collect()
        run_round(measured, stock, models, cases, seed, stock_s)
        longest_s = max(longest_s, time.monotonic() - begun)
        write(summary(measured, stock_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="*", default=SECONDS, help="lengths without a preset")
    parser.add_argument("--preset-seconds", type=float, nargs="*", default=(5.0,), help="lengths with a full preset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=560.0)
    parser.add_argument("--shape", default="bark-small")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    cases = [Case(s, False, 1, given.shape) for s in given.seconds]
    cases += [Case(s, True, 1, given.shape) for s in given.preset_seconds]
    quiet_transformers()
    measure(
        random_bark(given.shape),
        cases,
        rounds=given.rounds,
        limit_s=given.limit_s,
        stock_s=STOCK_S,
        write=lambda record: given.json.write_text(json.dumps(record, indent=1) + "\n"),
    )


if __name__ == "__main__":
    main()
