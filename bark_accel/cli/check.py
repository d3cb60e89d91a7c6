"""`check`: is stock's Bark what this machine hears from the accelerated one, and how much faster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.bench.measure import STAGES, Comparison, commit, machine_facts, summarise, versions, warm_up

from .console import EXIT_FAILED, fail, out, user_errors
from .demo import load
from .outputs import check_file
from .present import comparison_table
from .request import ModelChoice

if TYPE_CHECKING:
    from bark_accel.bench.approximations import SoundDistance
    from bark_accel.bench.check import Compared
    from bark_accel.bench.forced import Distance
    from bark_accel.bench.models import LoadedBark

# Each way to speak once, whatever the time.
AT_LEAST = 4
# Utterances whose fine codes are made again in each approximate way: another one begins before so many seconds.
HEARD, HEARD_S = 3, 5.0
MIB = 1 << 20


@dataclass(frozen=True)
class Checked:
    """Findings: requests with both runs, distances of scores by precision and stage, of sounds by approximation with
    the number of utterances, seconds to the first sound."""

    compared: Sequence[Compared]
    distances: dict[str, dict[str, Distance]]
    sounds: dict[str, tuple[SoundDistance, int]]
    first_sound_s: float
    wanted: int

    @property
    def wrong(self) -> list[str]:
        return [f"{c.request}: {line}" for c in self.compared for line in c.verdict.wrong]

    @property
    def ties(self) -> list[str]:
        return [f"{c.request}: {tie}" for c in self.compared for tie in c.verdict.ties]

    @property
    def rows(self) -> list[Comparison]:
        return summarise([(c.stock, c.accelerated) for c in self.compared])

    def verdict(self) -> str:
        total = self.rows[-1].ratio
        said = f"{len(self.compared)} requests, greedy and sampled"
        if self.wrong:
            requests = len({line.partition(": ")[0] for line in self.wrong})
            return f"NOT stock's speech in {requests} of {said}."
        but = f" but for {len(self.ties)} that rounding decides" if self.ties else ""
        return f"Stock's tokens in all of {said}{but}; {total:.1f} times as fast as stock."


def check(choice: ModelChoice, minutes: float, seconds: float, seed: int, json_path: Path | None) -> None:
    if json_path is not None:
        check_file("--json", json_path)
    choice.check()
    loaded = _loaded(choice)
    checked, report = _measure(loaded, minutes, seconds, seed)
    _show(checked, report)
    if json_path is not None:
        record = _record(loaded, checked, report, {"minutes": minutes, "seconds": seconds, "seed": seed})
        json_path.write_text(json.dumps(record, indent=1) + "\n")
        out.print(f"wrote {json_path}", markup=False, soft_wrap=True)
    if checked.wrong:
        fail(checked.verdict() + "\n  " + "\n  ".join(checked.wrong), EXIT_FAILED)
    out.print(f"[bold green]{checked.verdict()}[/]", soft_wrap=True)


def _loaded(choice: ModelChoice) -> LoadedBark:
    """The model in float32, the only dtype in which tokens are promised, where it is to run."""
    loaded = load(choice.name)
    with user_errors(RuntimeError):
        loaded.model.float().to(choice.device or "cpu")
    return loaded


def _measure(loaded: LoadedBark, minutes: float, seconds: float, seed: int) -> tuple[Checked, str]:
    from bark_accel.bench.approximations import WAYS, sound_distances
    from bark_accel.bench.check import compare, first_sound, inputs_of, requests
    from bark_accel.bench.forced import distances
    from bark_accel.bench.measure import run_once
    from bark_accel.bench.models import max_semantic_tokens, semantic_tokens, shared_copy

    with user_errors(ValueError):
        accelerated = accelerate_bark(shared_copy(loaded.model))
    longest = max_semantic_tokens(loaded.model)
    with user_errors(ValueError):
        tokens = min(longest, semantic_tokens(loaded.model, seconds))
    wanted = requests(loaded, seed)
    first = {**inputs_of(loaded, wanted[1]), "semantic_max_new_tokens": tokens}
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("warming up", total=len(wanted) + len(WAYS) + 1)
        for model in (loaded.model, accelerated):
            warm_up(model, dict(first))
        progress.update(task, description="smaller weights")
        far = distances(loaded.model, lambda model: run_once(model, dict(first), seed))
        progress.update(task, advance=1, description="approximate sound")
        voiceless = [{**inputs_of(loaded, r), "semantic_max_new_tokens": tokens} for r in wanted if r.voice is None]
        heard = _begun_within(HEARD_S, voiceless[:HEARD])
        sounds = sound_distances(
            loaded.model, heard, seed=seed, likelihood=False, on_way=lambda _: progress.advance(task)
        )
        progress.update(task, description="stock and accelerated")
        compared: list[Compared] = []
        for one in compare(
            loaded, accelerated, wanted, seconds=60 * minutes, at_least=min(AT_LEAST, len(wanted)), tokens=tokens
        ):
            compared.append(one)
            progress.advance(task)
    sounded = first_sound(accelerated, dict(first), seed)
    return Checked(compared, far, sounds, sounded, len(wanted)), str(acceleration_report(accelerated))


def _begun_within(seconds: float, utterances: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first, and those that are asked for before the time is up."""
    end = time.monotonic() + seconds
    for number, utterance in enumerate(utterances):
        if number and time.monotonic() > end:
            return
        yield utterance


def _show(checked: Checked, report: str) -> None:
    out.print(report, markup=False, soft_wrap=True)
    out.print()
    audio_s = median(c.accelerated.audio_s for c in checked.compared)
    out.print(comparison_table(checked.rows, audio_s, len(checked.compared)))
    stock, accelerated = _memory(checked.compared)
    if stock is not None:
        sizes = f"stock {stock / MIB:.0f} MiB, accelerated {accelerated / MIB:.0f} MiB"
        out.print(f"memory that a generation added, at most: {sizes}")
    out.print(f"first sound of a stream: {checked.first_sound_s:.2f} s")
    out.print(_distance_table(checked.distances))
    out.print(_sound_table(checked.sounds))
    for tie in checked.ties:
        out.print(f"tie: {tie}", markup=False, soft_wrap=True)
    if len(checked.compared) < checked.wanted:
        out.print(f"the time was up after {len(checked.compared)} of {checked.wanted} requests (--minutes)")


def _distance_table(distances: dict[str, dict[str, Distance]]) -> Table:
    table = Table(title="scores beside stock's, for stock's own tokens", title_justify="left")
    for name in ("weights", "stage", "relative error", "KL (nats)", "same best token"):
        table.add_column(name, justify="left" if name in ("weights", "stage") else "right")
    for precision, stages in distances.items():
        for stage, d in stages.items():
            table.add_row(
                precision, stage, f"{d.relative_error:.1e}", f"{d.kl_nats:.1e}", f"{100 * d.top_1_agreement:.2f} %"
            )
    return table


def _sound_table(sounds: dict[str, tuple[SoundDistance, int]]) -> Table:
    table = Table(title="sound beside stock's, from the same coarse tokens", title_justify="left")
    for name in ("fine stage", "same codes", "log spectrum", "mel cepstrum"):
        table.add_column(name, justify="left" if name == "fine stage" else "right")
    for name, (d, _) in sounds.items():
        same = "-" if d.same_fine_codes is None else f"{100 * d.same_fine_codes:.0f} %"
        table.add_row(name, same, f"{d.log_spectral_distance_db:.2f} dB", f"{d.mel_cepstral_distortion_db:.2f} dB")
    return table


def _memory(compared: Sequence[Compared]) -> tuple[Any, Any]:
    """The most bytes of any request, of stock and accelerated; None where the system does not tell."""
    pairs = [(c.stock_bytes, c.accelerated_bytes) for c in compared]
    if any(None in pair for pair in pairs):
        return None, None
    return max(stock for stock, _ in pairs if stock is not None), max(fast for _, fast in pairs if fast is not None)


def _record(loaded: LoadedBark, checked: Checked, report: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, for a bug report: a model in a folder is named by the folder's own name, without its path."""
    name = Path(loaded.name).resolve().name if Path(loaded.name).exists() else loaded.name
    stock, accelerated = _memory(checked.compared)
    return {
        "verdict": checked.verdict(),
        "model": name,
        "device": str(loaded.model.device),
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "settings": settings,
        "report": report.splitlines(),
        "summary": {row.stage: {**asdict(row), "ratio": row.ratio} for row in checked.rows},
        "first_sound_s": checked.first_sound_s,
        "memory_bytes": {"stock": stock, "accelerated": accelerated},
        "against_stock": {p: {s: asdict(d) for s, d in stages.items()} for p, stages in checked.distances.items()},
        "sound_beside_stock": {name: {"utterances": n, **asdict(d)} for name, (d, n) in checked.sounds.items()},
        "requests": [_plain(one) for one in checked.compared],
        "requests_left_out": checked.wanted - len(checked.compared),
    }


def _plain(one: Compared) -> dict[str, Any]:
    return {
        **asdict(one.request),
        "wrong": one.verdict.wrong,
        "ties": one.verdict.ties,
        "audio_s": one.accelerated.audio_s,
        "seconds": {stage: [one.stock.seconds[stage], one.accelerated.seconds[stage]] for stage in STAGES},
    }
