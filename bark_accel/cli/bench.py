"""`bench`: stock against accelerated, in turns in one process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.bench.baselines import BASELINES
from bark_accel.bench.measure import (
    Run,
    Spread,
    Verdict,
    commit,
    judge_tokens,
    machine_facts,
    run_once,
    run_pairs,
    spread_of,
    summarise,
    versions,
    warm_up,
)

from .console import UserError, out, user_errors, warn
from .demo import TEXT
from .outputs import CHART_SUFFIXES, check_file
from .present import baselines_table, comparison_table, save_chart
from .request import DTYPES


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement. The model has random weights, so that every run speaks for exactly `seconds`.

    `baselines`: beside stock, what a user can do without bark_accel, which takes a float32 model.
    """

    shape: str
    dtype: str
    seconds: float
    repeats: int
    seed: int = 0
    baselines: bool = True


@dataclass(frozen=True)
class Measured:
    """Pairs of stock and accelerated with their verdicts, the runs of each baseline, the report."""

    pairs: list[tuple[Run, Run]]
    verdicts: list[Verdict]
    baselines: dict[str, list[Run]]
    report: str


def bench(settings: Settings, json_path: Path | None, plot_path: Path | None) -> None:
    if settings.dtype not in DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}, got {settings.dtype}")
    if json_path is not None:
        check_file("--json", json_path)
    if plot_path is not None:
        check_file("--plot", plot_path, CHART_SUFFIXES)
    if settings.repeats < 1:
        raise UserError(f"--repeats: expected at least 1, got {settings.repeats}")
    measured = _measure(settings)
    verdicts, rows = measured.verdicts, summarise(measured.pairs)
    audio_s = measured.pairs[0][1].audio_s
    out.print(measured.report, markup=False, soft_wrap=True)
    out.print()
    out.print(comparison_table(rows, audio_s, settings.repeats))
    if measured.baselines:
        out.print(baselines_table(rows[-1], _totals(measured.baselines), settings.repeats))
    verdict = Verdict([line for v in verdicts for line in v.wrong], [tie for v in verdicts for tie in v.ties])
    promised = "" if settings.dtype == "float32" else f" (in {settings.dtype} equality is not promised)"
    for line in verdict.wrong:
        warn(f"tokens are not equal{promised}: {line}")
    if not verdict.wrong:
        out.print(f"{verdict.summary}.", markup=False)
    if json_path is not None:
        json_path.write_text(json.dumps(_record(settings, measured, verdict), indent=2) + "\n")
        out.print(f"wrote {json_path}", markup=False, soft_wrap=True)
    if plot_path is not None:
        title = f"{settings.shape}, {settings.dtype}, {audio_s:.1f} s of audio, {machine_facts()['cpu']}"
        save_chart(plot_path, rows, title)
        out.print(f"wrote {plot_path}", markup=False, soft_wrap=True)


def _measure(settings: Settings) -> Measured:
    from bark_accel.bench.models import (
        fake_inputs,
        quiet_transformers,
        random_bark,
        semantic_tokens,
        shared_copy,
    )

    quiet_transformers()
    with out.status("Building a model of random weights"), user_errors(ValueError):
        stock = random_bark(settings.shape).to(getattr(torch, settings.dtype))
        accelerated = accelerate_bark(shared_copy(stock))
        others = {name: make(stock) for name, make in BASELINES.items()} if settings.baselines else {}
    inputs = fake_inputs(stock, TEXT)
    with user_errors(ValueError):
        options: dict[str, Any] = {"semantic_max_new_tokens": semantic_tokens(stock, settings.seconds)}
    with out.status("Warming up"):
        for model in (stock, accelerated, *others.values()):
            warm_up(model, inputs)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        total = (2 + len(others)) * settings.repeats
        task = progress.add_task("", total=total, completed=-1)

        def on_run(name: str, repeat: int) -> None:
            progress.update(task, advance=1, description=f"{name}, run {repeat + 1}")

        pairs: list[tuple[Run, Run]] = []
        baselines: dict[str, list[Run]] = {name: [] for name in others}
        for pair in run_pairs(
            stock, accelerated, inputs, repeats=settings.repeats, seed=settings.seed, on_run=on_run, **options
        ):
            for name, model in others.items():
                on_run(name, len(pairs))
                baselines[name].append(run_once(model, inputs, settings.seed + len(pairs), **options))
            pairs.append(pair)
        progress.update(task, completed=total)
    verdicts = [judge_tokens(stock, inputs, settings.seed + i, *pair, **options) for i, pair in enumerate(pairs)]
    return Measured(pairs, verdicts, baselines, str(acceleration_report(accelerated)))


def _totals(baselines: dict[str, list[Run]]) -> dict[str, Spread]:
    return {name: spread_of([run.total_s for run in runs]) for name, runs in baselines.items()}


def _record(settings: Settings, measured: Measured, verdict: Verdict) -> dict[str, Any]:
    pairs = measured.pairs

    def plain(run: Run) -> dict[str, float]:
        return {**run.seconds, "total": run.total_s}

    return {
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "settings": asdict(settings),
        "audio_s": pairs[0][1].audio_s,
        "tokens_equal": not verdict.wrong,
        "ties": verdict.ties,
        "summary": {row.stage: {**asdict(row), "ratio": row.ratio} for row in summarise(pairs)},
        "runs": [{"stock": plain(a), "accelerated": plain(b)} for a, b in pairs],
        "baselines": {name: list(map(plain, runs)) for name, runs in measured.baselines.items()},
    }
