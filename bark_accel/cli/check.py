"""`check`: is stock's Bark what this machine hears from the accelerated one, and how much faster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.bench.measure import STAGES, commit, machine_facts, versions

from .check_page import show
from .check_run import Budget, CheckRun
from .checked import Checked
from .console import EXIT_FAILED, UserError, fail, out, user_errors
from .demo import load
from .outputs import check_file
from .request import ModelChoice
from .stopping import Stopping

if TYPE_CHECKING:
    from bark_accel import AccelerationReport
    from bark_accel.bench.check import Compared
    from bark_accel.bench.models import LoadedBark
    from bark_accel.bench.speaker import SpeakerEncoder


def check(
    choice: ModelChoice, minutes: float, seconds: float, seed: int, json_path: Path | None, voices: bool = False
) -> None:
    if json_path is not None:
        check_file("--json", json_path)
    choice.check()
    budget = Budget(minutes)
    speakers = _speakers(voices)
    loaded = _loaded(choice)
    facts = _facts(loaded, {"minutes": minutes, "seconds": seconds, "seed": seed, "voices": voices})
    run, report = _prepared(loaded, budget, seconds, seed, speakers, voices)
    checked, heard = run.checked, speakers is not None
    with Stopping() as stopping:
        try:
            signal = stopping.until_stopped(run.measure)
        except Exception as error:
            # A kernel that fails is what a bug report is for.
            checked.stopped_by = f"{type(error).__name__}: {_first_line(error)}"
            _tell(checked, json_path, facts, None, heard)
            raise
        checked.stopped_by = None if signal is None else signal.name
        _tell(checked, json_path, facts, report(), heard)
    if checked.wrong or signal is not None:
        fail("\n  ".join([checked.verdict(), *checked.wrong]), EXIT_FAILED if signal is None else 128 + signal)
    out.print(f"[bold green]{checked.verdict()}[/]", soft_wrap=True)


def _tell(
    checked: Checked, json_path: Path | None, facts: dict[str, Any], report: AccelerationReport | None, heard: bool
) -> None:
    """Write and show what was found; the report is left out where the accelerated model failed."""
    told = {} if report is None else {"report": _without_folders(report)}
    try:
        _write(json_path, {"verdict": checked.verdict(), **facts, **told, **_found(checked)})
    finally:
        show(checked, [] if report is None else list(map(str, report.fallbacks)), heard)


def _speakers(needed: bool) -> SpeakerEncoder | None:
    """Load the encoder of speakers where it is installed; raise `ImportError` where it is needed and is not."""
    from bark_accel.bench.speaker import SpeakerEncoder, encoder_weights

    return SpeakerEncoder() if needed or encoder_weights() is not None else None


def _loaded(choice: ModelChoice) -> LoadedBark:
    """The model in float32, the only dtype in which tokens are promised, where it is to run."""
    loaded = load(choice.name)
    with user_errors(RuntimeError):
        loaded.model.float().to(choice.device or "cpu")
    return loaded


def _prepared(
    loaded: LoadedBark, budget: Budget, seconds: float, seed: int, speakers: SpeakerEncoder | None, voices: bool
) -> tuple[CheckRun, Callable[[], AccelerationReport]]:
    """The run, and what makes the report of its accelerated model."""
    from bark_accel.bench.check import english_voices
    from bark_accel.bench.models import max_semantic_tokens, semantic_tokens, shared_copy

    if voices and not english_voices(loaded):
        raise UserError("--voices: expected a checkpoint with voices and a tokenizer, got one without")
    _check_voices(loaded)
    with user_errors(ValueError):
        accelerated = accelerate_bark(shared_copy(loaded.model))
        tokens = min(max_semantic_tokens(loaded.model), semantic_tokens(loaded.model, seconds))
    run = CheckRun(loaded, accelerated, tokens=tokens, seed=seed, budget=budget, speakers=speakers, voices=voices)
    return run, partial(acceleration_report, accelerated)


def _check_voices(loaded: LoadedBark) -> None:
    """Read the voices that requests have, before any work; raise `UserError` where a checkpoint lacks what it names."""
    from bark_accel.bench.check import request_voices
    from bark_accel.hf.voices import resolve_voice

    for voice in request_voices(loaded):
        try:
            resolve_voice(loaded.processor, voice)
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"voice {voice} of {loaded.name}: {' '.join(str(error).split())}") from error


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is None:
        return
    # JSON has no NaN: such numbers are written as text.
    plain = json.loads(json.dumps(record), parse_constant=str)
    path.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


def _facts(loaded: LoadedBark, settings: dict[str, Any]) -> dict[str, Any]:
    """Facts known before any work: a model in a folder is named by the folder's own name, without its path."""
    name = Path(os.path.abspath(loaded.name)).name if Path(loaded.name).exists() else loaded.name
    return {
        "model": name,
        "text_ids": "made up" if loaded.processor is None else "of its tokenizer",
        "device": str(loaded.model.device),
        "machine": machine_facts(loaded.model.device),
        "versions": versions(),
        "commit": commit(),
        "settings": settings,
    }


def _found(checked: Checked) -> dict[str, Any]:
    stock, accelerated = checked.memory or (None, None)
    return {
        "semantic_max_new_tokens": checked.most_tokens,
        "summary": {row.stage: {**asdict(row), "ratio": row.ratio} for row in checked.rows},
        "first_sound_s": checked.first_sound_s,
        "kernels_per_token": checked.kernels,
        "memory_bytes": {"stock": stock, "accelerated": accelerated},
        "against_stock": {p: {s: asdict(d) for s, d in stages.items()} for p, stages in checked.distances.items()},
        "sound_beside_stock": {name: {"utterances": n, **asdict(d)} for name, (d, n) in checked.sounds.items()},
        "voices": None if checked.voices is None else [asdict(one) for one in checked.voices],
        "requests": [_plain(one) for one in checked.compared],
        "left_out": checked.left_out,
    }


def _without_folders(report: AccelerationReport) -> list[str]:
    """The lines of a report; files of trials by their names alone."""
    return [re.sub(r"kept in .*/", "kept in ", line) for line in str(report).splitlines()]


def _first_line(error: Exception) -> str:
    """The first line of an error, without the user's own folder."""
    return str(error).partition("\n")[0].replace(str(Path.home()), "~").rstrip(".")


def _plain(one: Compared) -> dict[str, Any]:
    return {
        **asdict(one.request),
        "wrong": one.verdict.wrong,
        "ties": one.verdict.ties,
        "audio_s": one.accelerated.audio_s,
        "seconds": {stage: [one.stock.seconds[stage], one.accelerated.seconds[stage]] for stage in STAGES},
    }
