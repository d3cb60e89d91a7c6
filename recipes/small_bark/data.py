"""Speech by flite: texts drawn with a seed, spoken by two voices at flite's own 16 kHz."""

from __future__ import annotations

import random
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from . import loop
from .vocabulary import KINDS, Kind, Split, draw

SAMPLE_RATE = 16_000
# Utterances of each voice: training, development, and more for the semantic model, which has most to learn from texts.
VOICES = {"slt": (2400, 60, 9000), "rms": (1400, 40, 6000)}
_PEAK = 0.7


@dataclass
class Corpus:
    """Utterances: audio (float32, shape (samples,), 16 kHz), text, voice, split."""

    audio: list[np.ndarray]
    texts: list[str]
    voices: list[str]
    splits: list[str]

    def save(self, path: Path) -> None:
        """Write an .npz."""
        lengths = np.array([len(audio) for audio in self.audio])
        flat = np.concatenate([np.round(audio * 32767).astype(np.int16) for audio in self.audio])
        loop.save_arrays(path, audio=flat, lengths=lengths, texts=self.texts, voices=self.voices, splits=self.splits)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote."""
        with np.load(path) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            audio = [part.astype(np.float32) / 32767 for part in np.split(file["audio"], ends)]
            texts, voices, splits = ([str(item) for item in file[name]] for name in ("texts", "voices", "splits"))
        return cls(audio, texts, voices, splits)


def speak(text: str, voice: str) -> np.ndarray:
    """`text` by flite: float32, 16 kHz, shape (samples,), peak 0.7. Needs the program `flite`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True, capture_output=True)
        audio, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        raise ValueError(f"flite's voice {voice}: expected {SAMPLE_RATE} Hz, got {rate}")
    return audio * (_PEAK / np.abs(audio).max())


def make(seed: int) -> Corpus:
    """The corpus: half digits, half phrases; no text twice with the same voice."""
    rng = random.Random(seed)
    jobs: list[tuple[str, str, Split]] = []
    for voice, (training, development, _) in VOICES.items():
        jobs += [(text, voice, "train") for text in _texts(rng, "train", training, KINDS)]
        jobs += [(text, voice, "dev") for text in _texts(rng, "dev", development, KINDS)]
    return _spoken(jobs)


def make_more(seed: int, known: Corpus) -> Corpus:
    """Other texts of the training split; about half of them is words in any order, as the phrases are soon used up."""
    rng = random.Random(seed + 1)
    spoken = set(zip(known.texts, known.voices, strict=True))
    jobs: list[tuple[str, str, Split]] = []
    for voice, (_, _, more) in VOICES.items():
        texts = _texts(rng, "train", more, (*KINDS, "words"))
        jobs += [(text, voice, "train") for text in texts if (text, voice) not in spoken]
    return _spoken(jobs)


def _spoken(jobs: list[tuple[str, str, Split]]) -> Corpus:
    with ThreadPoolExecutor(2) as pool:
        spoken = pool.map(lambda job: speak(job[0], job[1]), jobs)
        audio = list(tqdm(spoken, total=len(jobs), desc="flite"))
    texts, voices, splits = (list(column) for column in zip(*jobs, strict=True))
    return Corpus(audio, texts, voices, splits)


def _texts(rng: random.Random, split: Split, count: int, kinds: tuple[Kind, ...]) -> list[str]:
    texts: dict[str, None] = {}
    draws = 0
    while len(texts) < count:
        texts[draw(rng, kinds[draws % len(kinds)], split)] = None
        draws += 1
    return list(texts)
