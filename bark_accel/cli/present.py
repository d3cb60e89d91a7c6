"""Comparisons as a table and as a bar chart, speech as a spectrogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from bark_accel.bench.measure import Comparison, Spread


def comparison_table(rows: Sequence[Comparison], audio_s: float, repeats: int) -> Table:
    """Seconds per stage and in all, and the real-time factor (seconds of work per second of audio)."""
    title = f"{audio_s:.2f} s of audio" + (f", median of {repeats} runs (p20 to p80)" if repeats > 1 else "")
    table = Table(title=title, title_justify="left")
    for name in ("stage", "stock", "accelerated", "ratio"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        last = row is rows[-1]
        if last:
            table.add_section()
        cells = (_seconds(row.stock, repeats), _seconds(row.accelerated, repeats), f"{row.ratio:.2f}x")
        table.add_row(row.stage, *cells, style="bold" if last else None)
    if audio_s > 0:
        total = rows[-1]
        factors = (f"{side.median / audio_s:.2f}" for side in (total.stock, total.accelerated))
        table.add_row("real-time factor", *factors, "")
    return table


def baselines_table(whole: Comparison, baselines: Mapping[str, Spread], repeats: int) -> Table:
    """Seconds in all of stock with smaller weights, its ratio to stock, and ours to it."""
    table = Table(title="stock's code with smaller weights", title_justify="left")
    for name in ("", "total", "faster than stock", "accelerated: faster still"):
        table.add_column(name, justify="right" if name else "left")
    for name, total in baselines.items():
        faster, ours = whole.stock.median / total.median, total.median / whole.accelerated.median
        table.add_row(name, _seconds(total, repeats), f"{faster:.2f}x", f"{ours:.2f}x")
    return table


def save_chart(path: Path, rows: Sequence[Comparison], title: str) -> None:
    """Grouped bars, stock beside accelerated; whiskers from p20 to p80."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    width = 0.38
    for side, offset, colour in (("stock", -width / 2, "#9aa5b1"), ("accelerated", width / 2, "#1f77b4")):
        spreads: list[Spread] = [getattr(row, side) for row in rows]
        medians = [spread.median for spread in spreads]
        whiskers = [[s.median - s.p20 for s in spreads], [s.p80 - s.median for s in spreads]]
        places = [i + offset for i in range(len(rows))]
        axes.bar(places, medians, width, label=side, color=colour)
        if any(map(any, whiskers)):
            axes.errorbar(places, medians, yerr=whiskers, fmt="none", ecolor="#333333", capsize=3)
    for i, row in enumerate(rows):
        axes.annotate(
            f"{row.ratio:.2f}x",
            (i + width / 2, row.accelerated.p80),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xticks(range(len(rows)), [row.stage for row in rows])
    axes.set_ylabel("seconds (less is better)")
    axes.set_title(title, fontsize=11)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def save_spectrogram(path: Path, samples: np.ndarray, rate: int, title: str) -> None:
    """Power of samples [S] over time and frequency, in dB, 80 dB down from the loudest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    # Windows of 32 ms, a new one every 4 ms.
    length, hop = round(0.032 * rate), round(0.004 * rate)
    padded = np.pad(samples, (0, max(0, length - len(samples))))
    # A floor, so that silence has a logarithm.
    noise = 1e-6 * np.random.default_rng(0).standard_normal(len(padded))
    power, _, _, image = axes.specgram(padded + noise, NFFT=length, Fs=rate, noverlap=length - hop, cmap="magma")
    loudest = 10 * np.log10(power.max())
    image.set_clim(loudest - 80, loudest)
    axes.set_xlabel("seconds")
    axes.set_ylabel("Hz")
    axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _seconds(spread: Spread, repeats: int) -> str:
    text = f"{spread.median:.2f} s"
    return f"{text} ({spread.p20:.2f} to {spread.p80:.2f})" if repeats > 1 else text
