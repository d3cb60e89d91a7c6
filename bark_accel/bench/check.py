"""Stock against accelerated on a loaded checkpoint, request by request: what `bark-accel check` runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import stream
from bark_accel.hf.voices import resolve_voice, voice_names

from .measure import Run, Verdict, judge_tokens, run_once, waveform_difference
from .models import LoadedBark

# Words that the small Bark knows too.
TEXTS = (
    "hello my dog is cute",
    "one two three four five",
    "good morning",
    "see you on monday",
    "the small cat is black",
    "please turn off the light",
    "welcome",
    "i like the color blue",
    "close the door please",
    "six seven eight nine zero",
)

# Of the largest sample that there is, 1: sixty decibels below.
SAMPLE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Request:
    """One utterance: greedy or sampled, with the voice of that name or without."""

    text: str
    voice: str | None
    do_sample: bool
    seed: int

    def __str__(self) -> str:
        return f"{self.text!r}, {'sampled' if self.do_sample else 'greedy'}, voice {self.voice or 'none'}"


@dataclass(frozen=True)
class Compared:
    """Both runs of a request, the verdict on their tokens, and the most memory each took (bytes; None: not known)."""

    request: Request
    stock: Run
    accelerated: Run
    verdict: Verdict
    stock_bytes: int | None
    accelerated_bytes: int | None


def requests(loaded: LoadedBark, seed: int) -> list[Request]:
    """Every text in each way; the first ten are all texts, the ways in turns, so that a short run sees all of both."""
    voices = request_voices(loaded)
    found = []
    for shift in range(4):
        for number, text in enumerate(TEXTS):
            way = (number + shift) % 4
            voice = voices[number // 4 % len(voices)] if voices and way % 2 else None
            found.append(Request(text, voice, way >= 2, seed + number))
    return list(dict.fromkeys(found))


def request_voices(loaded: LoadedBark) -> list[str]:
    """Names of the voices that requests have: two, or as many as there are."""
    return english_voices(loaded)[:2]


def english_voices(loaded: LoadedBark) -> list[str]:
    """Names of the voices that speak the language of `TEXTS`; all, where names do not tell."""
    names = [] if loaded.processor is None else voice_names(loaded.processor)
    return [name for name in names if "en_speaker" in name] or names


def inputs_of(loaded: LoadedBark, request: Request) -> dict[str, Any]:
    """The arguments of `generate`, on the model's device."""
    device = loaded.model.device
    inputs = {name: value.to(device) for name, value in loaded.inputs(request.text).items()}
    preset = resolve_voice(loaded.processor, request.voice)
    if preset is not None:
        inputs["history_prompt"] = {name: torch.from_numpy(array).to(device) for name, array in preset.items()}
    return {**inputs, "do_sample": request.do_sample}


def compare(
    loaded: LoadedBark, accelerated: BarkModel, wanted: list[Request], *, seconds: float, at_least: int, tokens: int
) -> Iterator[Compared]:
    """Run requests on both models in turns, until `seconds` have passed and `at_least` are done.

    Parameters
    ----------
    loaded : LoadedBark
        Stock, in float32.
    accelerated : BarkModel
        On the same weights.
    tokens : int
        Semantic tokens of an utterance, at most.
    """
    end = time.monotonic() + seconds
    for number, request in enumerate(wanted):
        if number >= at_least and time.monotonic() > end:
            return
        inputs = {**inputs_of(loaded, request), "semantic_max_new_tokens": tokens}
        stock, stock_bytes = _with_memory(loaded.model, inputs, request.seed)
        fast, fast_bytes = _with_memory(accelerated, inputs, request.seed)
        verdict = judge_tokens(loaded.model, inputs, request.seed, stock, fast)
        verdict.wrong.extend([] if verdict.ties else _wrong_sound(stock, fast))
        yield Compared(request, stock, fast, verdict, stock_bytes, fast_bytes)


def _wrong_sound(stock: Run, accelerated: Run) -> list[str]:
    """Say where equal codes were not decoded to the same sound: a line, or none."""
    difference = waveform_difference(stock, accelerated)
    if difference <= SAMPLE_TOLERANCE:  # NaN is not
        return []
    return [f"codec: expected stock's samples within {SAMPLE_TOLERANCE}, got a difference of {difference:.1g}"]


def first_sound(accelerated: BarkModel, inputs: dict[str, Any], seed: int) -> float:
    """Seconds to the first chunk of a stream."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    chunks: Any = stream(accelerated, **inputs)
    next(chunks)
    passed = time.perf_counter() - start
    chunks.close()
    return passed


def _with_memory(model: BarkModel, inputs: dict[str, Any], seed: int) -> tuple[Run, int | None]:
    before = _reset_peak(model.device)
    run = run_once(model, inputs, seed)
    return run, None if before is None else max(0, _peak(model.device) - before)


def _reset_peak(device: torch.device) -> int | None:
    """Forget the peak, and return what is in use; None where a system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS:")
    except OSError:
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def _status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[0]) * 1024
