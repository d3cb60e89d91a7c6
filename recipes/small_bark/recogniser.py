"""Word error rate by pocketsphinx, with a grammar of the texts that can occur."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pocketsphinx import Decoder

from .vocabulary import Kind, grammar

SAMPLE_RATE = 16_000
# Chosen on flite's recordings of training texts, where they leave 0.2 % of the words wrong (without: 2 %).
_PADDING = SAMPLE_RATE // 2
_NOISE = 1e-3
_WORD_INSERTION = 0.2


class Recogniser:
    """Reads speech of one kind (digits or phrases)."""

    def __init__(self, kind: Kind) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grammar.gram"
            path.write_text(grammar(kind))
            self._decoder = Decoder(jsgf=str(path), samprate=SAMPLE_RATE, wip=_WORD_INSERTION, loglevel="FATAL")

    def words(self, audio: np.ndarray) -> list[str]:
        """Words heard in `audio` (float, -1 to 1, 16 kHz; shape (samples,)); empty where no text fits."""
        peak = max(float(np.abs(audio).max(initial=0.0)), 1e-6)
        padded = np.pad(audio * (0.5 / peak), _PADDING)
        padded += np.random.default_rng(0).normal(0.0, _NOISE, len(padded))
        # The grammar search keeps the channel's mean from one utterance to the next; each is read alone here.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr.split() if hypothesis else []


@dataclass(frozen=True)
class Errors:
    """Word errors of one utterance."""

    errors: int
    words: int


def compare(expected: list[str], heard: list[str]) -> Errors:
    """Fewest insertions, deletions and substitutions (Levenshtein) between two lists of words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return Errors(row[-1], len(expected))


def word_error_rate(results: list[Errors], seed: int = 0) -> tuple[float, float, float]:
    """Rate, and the bounds of its 95 % interval (bootstrap over utterances)."""
    errors, words = _resampled(results, seed)
    return _rate(results), *_interval(errors / words)


def rate_difference(results: list[Errors], baseline: list[Errors], seed: int = 0) -> tuple[float, float, float]:
    """
    Return how far the rate is above that of `baseline`, and the bounds of its 95 % interval: bootstrap over utterances,
    the same ones of both, which are of the same texts in the same order.
    """
    if [result.words for result in results] != [result.words for result in baseline]:
        raise ValueError("baseline: expected the utterances of the same texts")
    errors, words = _resampled(results, seed)
    errors_there, _ = _resampled(baseline, seed)
    return _rate(results) - _rate(baseline), *_interval((errors - errors_there) / words)


def _rate(results: list[Errors]) -> float:
    return sum(result.errors for result in results) / sum(result.words for result in results)


def _resampled(results: list[Errors], seed: int) -> np.ndarray:
    """[2, 2000]: errors and words of resampled sets of utterances."""
    counts = np.array([(result.errors, result.words) for result in results], dtype=float)
    picks = np.random.default_rng(seed).integers(len(counts), size=(2000, len(counts)))
    return counts[picks].sum(axis=1).T


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
