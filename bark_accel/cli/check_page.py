"""The findings of `check`, as one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bark_accel.bench.approximations import ANOTHER_DRAW, STOCK
from bark_accel.bench.speaker import INSTALL

from .check_run import LONG_WINDOWS
from .checked import Checked
from .console import out
from .present import comparison_table

if TYPE_CHECKING:
    from bark_accel.bench.approximations import SoundDistance
    from bark_accel.bench.forced import Distance
    from bark_accel.bench.voices import Held

MIB = 1 << 20
# Names of ways on the page, where those of the file are long or say less.
_SHORT = {"same": "default", ANOTHER_DRAW: "another draw", LONG_WINDOWS: "long windows"}


def show(checked: Checked, fallbacks: Sequence[str], heard: bool) -> None:
    """Print all but the verdict; `heard`: speakers were compared."""
    if checked.compared:
        audio_s = median(c.accelerated.audio_s for c in checked.compared)
        out.print(comparison_table(checked.rows, audio_s, len(checked.compared)))
    if checked.distances or checked.sounds:
        out.print(_distance_table(checked, heard))
    if checked.voices:
        out.print(_voice_table(checked.voices))
    for line in _lines(checked, fallbacks, heard):
        out.print(line, markup=False, soft_wrap=True)


def _lines(checked: Checked, fallbacks: Sequence[str], heard: bool) -> Iterable[str]:
    if checked.first_sound_s is not None:
        yield f"first sound of a stream: {checked.first_sound_s:.2f} s"
    if checked.memory is not None:
        stock, accelerated = (f"{size / MIB:.0f} MiB" for size in checked.memory)
        yield f"memory that a generation added, at most: stock {stock}, accelerated {accelerated}"
    if checked.kernels is not None:
        yield f"kernels per token: {_kernels_text(checked.kernels)}"
    yield from (f"fell back: {reason}" for reason in fallbacks)
    yield from (f"tie: {tie}" for tie in checked.ties)
    if not heard:
        yield f"speakers were not compared: that needs `{INSTALL}`"
    left_out = ", ".join(checked.left_out)
    if left_out:
        yield f"no time was left for {left_out} (--minutes)" if checked.stopped_by is None else f"not done: {left_out}"


def _distance_table(checked: Checked, heard: bool) -> Table:
    """One row a way to generate otherwise: scores of its worst stage, sound on average."""
    table = _table(
        "distance from stock: of scores for stock's tokens, in the worst stage; of sound",
        ("", "scores", "KL, nats", "best token", "fine codes", "mel, dB", *(["speaker"] if heard else [])),
    )
    for way in dict.fromkeys([*checked.distances, *checked.sounds]):
        if way == STOCK:
            continue
        sound, _ = checked.sounds.get(way, (None, 0))
        cells = *_score_cells(checked.distances.get(way)), *_sound_cells(sound)
        table.add_row(_SHORT.get(way, way), *cells[: len(table.columns) - 1])
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _score_cells(stages: dict[str, Distance] | None) -> tuple[str, str, str]:
    if stages is None:
        return "-", "-", "-"

    its = stages.values()
    errors, nats = (f"{max(figures):.1e}" for figures in ([d.relative_error for d in its], [d.kl_nats for d in its]))
    return errors, nats, f"{100 * min(d.top_1_agreement for d in its):.1f} %"


def _sound_cells(d: SoundDistance | None) -> tuple[str, str, str]:
    if d is None:
        return "-", "-", "-"
    same = "-" if d.same_fine_codes is None else f"{100 * d.same_fine_codes:.0f} %"
    return same, f"{d.mel_cepstral_distortion_db:.2f}", _similarity(d.speaker_similarity)


def _voice_table(voices: Sequence[Held]) -> Table:
    table = _table(
        "voices, by how near their speech is to the preset's own sound",
        ("voice", "utterances", "to its preset", "lowest", "to other presets"),
    )
    for its in voices:
        said = f"{len(its.to_preset)}" + (f" ({its.silent} silent)" if its.silent else "")
        mean, lowest = (fmean(its.to_preset), min(its.to_preset)) if its.to_preset else (None, None)
        others = fmean(its.to_others) if its.to_others else None
        table.add_row(its.voice, said, *map(_similarity, (mean, lowest, others)))
    return table


def _similarity(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _kernels_text(kernels: dict[str, dict[str, float]] | str) -> str:
    if isinstance(kernels, str):
        return f"not counted ({kernels})"
    stages = kernels["accelerated"]
    return "; ".join(
        f"{stage} {kernels['stock'][stage]:.0f} stock, {stages[stage]:.0f} accelerated" for stage in stages
    )
