"""Evaluation of a checkpoint on texts that it has never seen: word error rate, ends, lengths, by stock Transformers."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoProcessor, BarkModel

from .data import speak
from .layout import MAX_SEMANTIC
from .recogniser import SAMPLE_RATE, Errors, Recogniser, compare, word_error_rate
from .tokens import CODEBOOKS
from .vocabulary import KINDS, Kind, Split, draw, phrases, split_of

_TOKEN_SAMPLES = SAMPLE_RATE // 25


@dataclass(frozen=True)
class Heard:
    """One utterance: what should be said, what was heard, its seconds, and whether it ended by itself."""

    text: str
    heard: str
    seconds: float
    ended: bool

    @property
    def errors(self) -> Errors:
        """Between the two texts."""
        return compare(self.text.split(), self.heard.split())


def texts(kind: Kind, split: Split, count: int, seed: int) -> list[str]:
    """`count` different texts; raises ValueError where the split has fewer phrases."""
    if kind == "phrases" and count > held(split):
        raise ValueError(f"count: expected at most {held(split)}, the phrases of the split {split}, got {count}")
    rng = random.Random(f"{kind} {split} {seed}")
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        chosen[draw(rng, kind, split)] = None
    return list(chosen)


def held(split: Split) -> int:
    """Phrases of a split in all."""
    return sum(split_of(phrase) == split for phrase in phrases())


def listen(audio: list[np.ndarray], said: list[str], kind: Kind) -> list[Heard]:
    """Have the recogniser read utterances (float, 16 kHz)."""
    recogniser = Recogniser(kind)
    limit = MAX_SEMANTIC * _TOKEN_SAMPLES
    return [
        Heard(text, " ".join(recogniser.words(wave)), len(wave) / SAMPLE_RATE, len(wave) < limit)
        for text, wave in zip(said, audio, strict=True)
    ]


@torch.no_grad()
def say(
    generate: Callable[..., Any], processor: Any, said: list[str], voice: str | None, batch: int, seed: int
) -> list[np.ndarray]:
    """Every text by `generate` (the method of a BarkModel); a batch costs little more than one row."""
    audio = []
    for start in tqdm(range(0, len(said), batch), desc=voice or "no preset"):
        inputs = processor(said[start : start + batch], voice_preset=voice)
        # Each batch has a seed, so that ways to generate that draw differently draw the same for the next one.
        torch.manual_seed(seed + start)
        waves, lengths = generate(**inputs, return_output_lengths=True)
        audio += [wave[:length].float().numpy() for wave, length in zip(waves, lengths, strict=True)]
    return audio


def figures(heard: list[Heard]) -> dict[str, Any]:
    """Compute the figures of utterances of one kind and voice."""
    rate, low, high = word_error_rate([item.errors for item in heard])
    return {
        "utterances": len(heard),
        "words": sum(item.errors.words for item in heard),
        "word_error_rate": rate,
        "interval": [low, high],
        "ended": sum(item.ended for item in heard) / len(heard),
        "seconds": sum(item.seconds for item in heard),
        "wrong": [[item.text, item.heard] for item in heard if item.errors.errors],
    }


def evaluate(folder: Path, split: Split, count: int, batch: int, seed: int) -> dict[str, Any]:
    """Figures of the checkpoint in `folder` and of flite's own recordings of the same texts."""
    processor, bark = AutoProcessor.from_pretrained(folder), BarkModel.from_pretrained(folder)
    results: dict[str, Any] = {"split": split, "seed": seed, "batch": batch, "codebooks": CODEBOOKS}
    for kind in KINDS:
        said = texts(kind, split, count, seed)
        for voice in (None, *processor.available_voice_presets):
            heard = listen(say(bark.generate, processor, said, voice, batch, seed), said, kind)
            results[f"{kind}, {voice or 'no preset'}"] = figures(heard)
        for voice in processor.available_voice_presets:
            results[f"{kind}, flite {voice}"] = figures(listen([speak(text, voice) for text in said], said, kind))
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint")
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--count", type=int, default=50, help="texts of each kind, each for every voice")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = evaluate(arguments.folder, arguments.split, arguments.count, arguments.batch, arguments.seed)
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
