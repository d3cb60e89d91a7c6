"""`demo`: the same utterance, stock and accelerated, with the tokens compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
import torch

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.bench.measure import (
    TOKEN_STAGES,
    Run,
    Verdict,
    judge_tokens,
    machine_facts,
    run_once,
    summarise,
    waveform_difference,
)

from .console import fail, out, user_errors, warn
from .outputs import check_folder
from .present import comparison_table, save_chart, save_spectrogram
from .progress import PartBars, StageCounts, progress_bars

if TYPE_CHECKING:
    from transformers import BarkModel

    from bark_accel.bench.models import LoadedBark

TEXT = "Hello, my dog is cute."
FILES = ("stock.wav", "accelerated.wav", "spectrogram.png", "stage_times.png")


def demo(name: str | None, seconds: float | None, seed: int, folder: Path) -> None:
    from bark_accel.bench.models import coarse_per_semantic, max_semantic_tokens, semantic_tokens, shared_copy
    from bark_accel.hf.configs import sample_rate

    check_folder("--out", folder, FILES)
    loaded = load(name)
    model = loaded.model
    if model.dtype != torch.float32:
        warn(f"the checkpoint is {model.dtype}; the demo runs it in float32, where tokens have to be equal")
        model.float()
    with user_errors(ValueError):
        tokens = max_semantic_tokens(model) if seconds is None else semantic_tokens(model, seconds)
    out.print(f"Text: {TEXT} At most {tokens} semantic tokens. Seed: {seed}.", markup=False)
    inputs, options = loaded.inputs(TEXT), {"semantic_max_new_tokens": tokens}
    models = {"stock": model, "accelerated": accelerate_bark(shared_copy(model))}
    with out.status("Warming up"):
        # All of it: torch prepares convolutions for each length, and stock's first sound takes three times as long.
        for one in models.values():
            run_once(one, inputs, seed, None, **options)
    with progress_bars() as progress:
        runs = []
        for label, one in models.items():
            counts = StageCounts(PartBars(progress, label), tokens, coarse_per_semantic(model))
            runs.append(run_once(one, inputs, seed, counts.start, **options, streamer=counts))
            counts.close()
    stock, accelerated = runs
    folder.mkdir(parents=True, exist_ok=True)
    rate = sample_rate(model)
    for label, run in (("stock", stock), ("accelerated", accelerated)):
        write_wav(folder / f"{label}.wav", run.outputs["codec"], rate)
    save_spectrogram(folder / "spectrogram.png", accelerated.outputs["codec"][0].float().cpu().numpy(), rate, TEXT)
    _show(models["accelerated"], stock, accelerated, folder)
    _check(judge_tokens(model, inputs, seed, stock, accelerated, **options), stock, accelerated)


def load(name: str | None) -> LoadedBark:
    """Load a model and say plainly what it is."""
    from bark_accel.bench.models import load_bark, quiet_transformers

    quiet_transformers()
    with out.status("Loading the model"), user_errors(OSError, ValueError, RuntimeError):
        loaded = load_bark(name)
    out.print(f"Model: {loaded.name}", markup=False)
    if loaded.processor is None:
        warn(f"{loaded.processor_problem}; words become made-up ids, so the model does not say the text")
    return loaded


def write_wav(path: Path, waveform: Any, rate: int) -> None:
    """Write the first row of a waveform [B, S]."""
    soundfile.write(path, waveform[0].float().cpu().numpy(), rate)


def _show(model: BarkModel, stock: Run, accelerated: Run, folder: Path) -> None:
    rows = summarise([(stock, accelerated)])
    out.print()
    out.print(str(acceleration_report(model)), markup=False, soft_wrap=True)
    out.print()
    out.print(comparison_table(rows, accelerated.audio_s, repeats=1))
    facts = machine_facts()
    title = f"{accelerated.audio_s:.1f} s of audio on {facts['threads']} threads of {facts['cpu']}"
    save_chart(folder / "stage_times.png", rows, title)
    for name in FILES:
        out.print(f"wrote {folder / name}", markup=False, soft_wrap=True)


def _check(verdict: Verdict, stock: Run, accelerated: Run) -> None:
    if verdict.wrong:
        fail("the tokens of stock and accelerated are NOT equal:\n  " + "\n  ".join(verdict.wrong))
    counts = ", ".join(f"{accelerated.outputs[stage].numel()} {stage}" for stage in TOKEN_STAGES)
    out.print(f"[bold green]{verdict.summary}[/] ({counts}), ", end="")
    out.print(f"largest difference of two samples: {waveform_difference(stock, accelerated):.1e}")
