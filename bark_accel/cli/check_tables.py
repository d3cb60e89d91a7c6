"""The findings of `check`, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.table import Table

from bark_accel.bench.speaker import INSTALL

from .checked import Checked
from .console import out
from .present import comparison_table

if TYPE_CHECKING:
    from bark_accel.bench.approximations import SoundDistance
    from bark_accel.bench.forced import Distance
    from bark_accel.bench.voices import Held

MIB = 1 << 20


def show(checked: Checked, report: str, heard: bool) -> None:
    """Print the acceleration report and all tables; `heard`: speakers were compared."""
    out.print(report, markup=False, soft_wrap=True)
    out.print()
    audio_s = median(c.accelerated.audio_s for c in checked.compared)
    out.print(comparison_table(checked.rows, audio_s, len(checked.compared)))
    if checked.memory is not None:
        stock, accelerated = checked.memory
        sizes = f"stock {stock / MIB:.0f} MiB, accelerated {accelerated / MIB:.0f} MiB"
        out.print(f"memory that a generation added, at most: {sizes}")
    out.print(f"first sound of a stream: {checked.first_sound_s:.2f} s")
    if checked.kernels is not None:
        out.print(f"kernels per token: {_kernels_text(checked.kernels)}", markup=False, soft_wrap=True)
    if checked.distances:
        out.print(_distance_table(checked.distances))
    if checked.sounds:
        out.print(_sound_table(checked.sounds, heard))
    if not heard:
        out.print(f"speakers were not compared: that needs `{INSTALL}`", markup=False, soft_wrap=True)
    if checked.voices is not None:
        out.print(_voice_table(checked.voices))
    for tie in checked.ties:
        out.print(f"tie: {tie}", markup=False, soft_wrap=True)
    if checked.left_out:
        out.print(f"no time was left for {', '.join(checked.left_out)} (--minutes)", markup=False, soft_wrap=True)


def _distance_table(distances: dict[str, dict[str, Distance]]) -> Table:
    table = Table(title="scores beside stock's, for stock's own tokens", title_justify="left")
    for name in ("numbers", "stage", "relative error", "KL (nats)", "same best token"):
        table.add_column(name, justify="left" if name in ("numbers", "stage") else "right")
    for way, stages in distances.items():
        for stage, d in stages.items():
            table.add_row(way, stage, f"{d.relative_error:.1e}", f"{d.kl_nats:.1e}", f"{100 * d.top_1_agreement:.2f} %")
    return table


def _sound_table(sounds: dict[str, tuple[SoundDistance, int]], heard: bool) -> Table:
    table = Table(title="sound beside stock's, from the same coarse tokens", title_justify="left")
    for name in ("fine stage", "same codes", "log spectrum", "mel cepstrum", *(["same speaker"] if heard else [])):
        table.add_column(name, justify="left" if name == "fine stage" else "right")
    for name, (d, _) in sounds.items():
        same = "-" if d.same_fine_codes is None else f"{100 * d.same_fine_codes:.0f} %"
        distances = (f"{d.log_spectral_distance_db:.2f} dB", f"{d.mel_cepstral_distortion_db:.2f} dB")
        table.add_row(name, same, *distances, *([_similarity(d.speaker_similarity)] if heard else []))
    return table


def _voice_table(voices: Sequence[Held]) -> Table:
    table = Table(title="voices, by how near their speech is to the preset's own sound", title_justify="left")
    for name in ("voice", "utterances", "to its preset", "lowest", "to other presets"):
        table.add_column(name, justify="left" if name == "voice" else "right")
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
