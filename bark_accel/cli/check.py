"""`check`: is stock's Bark what this machine hears from the accelerated one, and how much faster."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.bench.measure import STAGES, commit, machine_facts, versions, warm_up

from .check_tables import show
from .checked import Checked
from .console import EXIT_FAILED, UserError, fail, out, user_errors
from .demo import load
from .outputs import check_file
from .request import ModelChoice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BarkModel

    from bark_accel.bench.check import Compared
    from bark_accel.bench.models import LoadedBark
    from bark_accel.bench.speaker import SpeakerEncoder
    from bark_accel.bench.voices import Held

# Each way to speak once, whatever the time.
AT_LEAST = 4
# Utterances whose fine codes are made again in each approximate way: another one begins before so many seconds.
HEARD, HEARD_S = 3, 5.0
# Longest utterance that a voice is judged by: of less than 1.6 s, similarities say little.
VOICE_S = 4.0


def check(
    choice: ModelChoice, minutes: float, seconds: float, seed: int, json_path: Path | None, voices: bool = False
) -> None:
    if json_path is not None:
        check_file("--json", json_path)
    choice.check()
    speakers = _speakers(voices)
    loaded = _loaded(choice)
    checked, report = _measure(loaded, minutes, seconds, seed, speakers, voices)
    show(checked, report, heard=speakers is not None)
    if json_path is not None:
        settings = {"minutes": minutes, "seconds": seconds, "seed": seed, "voices": voices}
        record = _record(loaded, checked, report, settings)
        json_path.write_text(json.dumps(record, indent=1) + "\n")
        out.print(f"wrote {json_path}", markup=False, soft_wrap=True)
    if checked.wrong:
        fail(checked.verdict() + "\n  " + "\n  ".join(checked.wrong), EXIT_FAILED)
    out.print(f"[bold green]{checked.verdict()}[/]", soft_wrap=True)


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


def _measure(
    loaded: LoadedBark, minutes: float, seconds: float, seed: int, speakers: SpeakerEncoder | None, voices: bool
) -> tuple[Checked, str]:
    from bark_accel.bench.approximations import WAYS, sound_distances
    from bark_accel.bench.check import compare, english_voices, first_sound, inputs_of, requests
    from bark_accel.bench.forced import distances
    from bark_accel.bench.measure import run_once
    from bark_accel.bench.models import max_semantic_tokens, semantic_tokens, shared_copy

    end = time.monotonic() + 60 * minutes
    if voices and not english_voices(loaded):
        raise UserError("--voices: expected a checkpoint with voices and a tokenizer, got one without")
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
            loaded.model,
            heard,
            seed=seed,
            likelihood=False,
            speakers=speakers,
            on_way=lambda _: progress.advance(task),
        )
        progress.update(task, description="stock and accelerated")
        compared: list[Compared] = []
        seconds_left = (end - time.monotonic()) / (2 if voices else 1)
        for one in compare(
            loaded, accelerated, wanted, seconds=seconds_left, at_least=min(AT_LEAST, len(wanted)), tokens=tokens
        ):
            compared.append(one)
            progress.advance(task)
        held = None
        if voices and speakers is not None:
            held = _held(loaded, accelerated, speakers, end - time.monotonic(), seed, (progress, task))
    sounded = first_sound(accelerated, dict(first), seed)
    checked = Checked(
        compared,
        far,
        sounds,
        sounded,
        len(wanted),
        _kernels({"stock": loaded.model, "accelerated": accelerated}, first, seed),
        held,
        0 if held is None else len(english_voices(loaded)) - len(held),
    )
    return checked, str(acceleration_report(accelerated))


def _held(
    loaded: LoadedBark,
    accelerated: BarkModel,
    speakers: SpeakerEncoder,
    seconds: float,
    seed: int,
    bar: tuple[Progress, TaskID],
) -> list[Held]:
    """The checkpoint's voices, ranked, in as many seconds."""
    import torch

    from bark_accel.bench.check import TEXTS, Request, english_voices, inputs_of
    from bark_accel.bench.models import max_semantic_tokens, semantic_tokens
    from bark_accel.bench.voices import Presets, rank_voices
    from bark_accel.hf.voices import resolve_voice

    with user_errors(OSError, ValueError):
        found = {name: resolve_voice(loaded.processor, name) for name in english_voices(loaded)}
        presets = Presets(loaded.model, {name: its for name, its in found.items() if its is not None}, speakers)
    try:
        tokens = semantic_tokens(loaded.model, VOICE_S)
    except ValueError:  # it cannot speak as long
        tokens = max_semantic_tokens(loaded.model)

    def say(text: str, voice: str) -> Tensor:
        inputs = inputs_of(loaded, Request(text, voice, True, seed))
        torch.manual_seed(seed + TEXTS.index(text))
        return accelerated.generate(**inputs, semantic_max_new_tokens=tokens)[0].float().cpu()

    progress, task = bar
    progress.update(task, description="voices", total=len(TEXTS) * len(found), completed=0)
    return rank_voices(presets, TEXTS, say, seconds=seconds, at_least=AT_LEAST, on_said=lambda: progress.advance(task))


def _kernels(
    models: dict[str, BarkModel], inputs: dict[str, Any], seed: int
) -> dict[str, dict[str, float]] | str | None:
    """Kernels per token of each model and stage on a GPU, None on a CPU; a text: why they could not be counted."""
    from bark_accel.bench.launches import kernels_per_token, stage_launches, tokens_of_a_row

    if models["stock"].device.type != "cuda":
        return None
    found = {}
    for name, model in models.items():
        try:
            counts, run = stage_launches(model, dict(inputs), seed, on_gpu=True)
        except RuntimeError as error:  # a driver may keep its counters to the administrator
            return str(error).partition("\n")[0]
        found[name] = kernels_per_token(counts, tokens_of_a_row(run))
    return found


def _begun_within(seconds: float, utterances: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first, and those that are asked for before the time is up."""
    end = time.monotonic() + seconds
    for number, utterance in enumerate(utterances):
        if number and time.monotonic() > end:
            return
        yield utterance


def _record(loaded: LoadedBark, checked: Checked, report: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, for a bug report: a model in a folder is named by the folder's own name, without its path."""
    name = Path(os.path.abspath(loaded.name)).name if Path(loaded.name).exists() else loaded.name
    stock, accelerated = checked.memory or (None, None)
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
        "kernels_per_token": checked.kernels,
        "memory_bytes": {"stock": stock, "accelerated": accelerated},
        "against_stock": {p: {s: asdict(d) for s, d in stages.items()} for p, stages in checked.distances.items()},
        "sound_beside_stock": {name: {"utterances": n, **asdict(d)} for name, (d, n) in checked.sounds.items()},
        "voices": None if checked.voices is None else [asdict(one) for one in checked.voices],
        "voices_left_out": checked.voices_left_out,
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
