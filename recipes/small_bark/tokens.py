"""Discrete speech: semantic tokens at 25 Hz and codec codes at 50 Hz, by k-means on the features of the frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.fft import dct
from tqdm import tqdm

from . import loop
from .data import Corpus
from .features import MEL_BANDS, log_mel, pitch

SEMANTIC_TOKENS = 240
CODEBOOK_SIZE = 512
# The first codebook holds the spectrum, the second one pitch and phase, the others what the first left of the spectrum.
CODEBOOKS = 6
EMBEDDING = 48
_HARMONICS = 6
_SPECTRUM = EMBEDDING - 2 - 2 * _HARMONICS
# Frames that the k-means of one codebook sees, and its rounds.
_SAMPLE = 60_000
_ROUNDS = 15
# Weight of a difference in pitch of one octave against one of a radian in phase.
_OCTAVE = 3.5


@dataclass
class Tokens:
    """
    Tokens of every utterance: semantic (T / 2,) and codes (CODEBOOKS, T); the codebooks (CODEBOOKS, size, EMBEDDING)
    and the centres of the semantic clusters (SEMANTIC_TOKENS, features).
    """

    semantic: list[np.ndarray]
    codes: list[np.ndarray]
    codebooks: np.ndarray
    centres: np.ndarray

    def save(self, path: Path) -> None:
        """Write an .npz."""
        lengths = np.array([len(item) for item in self.semantic])
        flat, codes = np.concatenate(self.semantic), np.concatenate(self.codes, axis=1)
        arrays = {"codebooks": self.codebooks, "centres": self.centres}
        loop.save_arrays(path, lengths=lengths, semantic=flat, codes=codes, **arrays)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read what `save` wrote."""
        with np.load(path) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            semantic = np.split(file["semantic"], ends)
            codes = np.split(file["codes"], 2 * ends, axis=1)
            return cls(semantic, codes, file["codebooks"], file["centres"])


def make(corpus: Corpus, seed: int) -> Tokens:
    """Tokens of every utterance; the clusters are those of the training split."""
    rng = np.random.default_rng(seed)
    mels = [log_mel(audio) for audio in tqdm(corpus.audio, desc="spectra")]
    pitches = [pitch(audio) for audio in tqdm(corpus.audio, desc="pitch")]
    lengths = np.array([len(mel) for mel in mels])
    train = np.repeat(np.array(corpus.splits) == "train", lengths)
    mel, tone = np.concatenate(mels), np.concatenate(pitches)
    features = _cepstra(mel)
    centres = _cluster(features[train[::2]], SEMANTIC_TOKENS, rng)
    semantic = _assign(features, centres)
    codes, codebooks = _codes(mel, tone, train, rng)
    ends = np.cumsum(lengths)[:-1]
    return Tokens(np.split(semantic, ends // 2), np.split(codes, ends, axis=1), codebooks, centres)


def semantic_alone(corpus: Corpus, centres: np.ndarray) -> list[np.ndarray]:
    """Semantic tokens of other utterances, by the same clusters."""
    return [_assign(_cepstra(log_mel(audio)), centres) for audio in tqdm(corpus.audio, desc="semantic tokens")]


def _cepstra(mel: np.ndarray) -> np.ndarray:
    """Compute the cepstra of each two frames, and the change from the first to the second: shape (frames / 2, 32)."""
    cepstra = dct(mel.reshape(-1, 4, MEL_BANDS), axis=2, norm="ortho")[:, :, :16]
    change = cepstra[:, 2:].mean(axis=1) - cepstra[:, :2].mean(axis=1)
    return np.concatenate([cepstra.mean(axis=1), 0.5 * change], axis=1)


def _codes(
    mel: np.ndarray, tone: np.ndarray, train: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    codebooks = np.zeros((CODEBOOKS, CODEBOOK_SIZE, EMBEDDING), np.float32)
    codes = np.zeros((CODEBOOKS, len(mel)), np.int16)
    residual = _spectrum(mel.reshape(len(mel), -1), train)
    codes[1], codebooks[1, :, _SPECTRUM:] = _pitch_codes(tone, train, rng)
    for book in tqdm([0, *range(2, CODEBOOKS)], desc="codebooks"):
        centres = _cluster(residual[train], CODEBOOK_SIZE, rng)
        codes[book] = _assign(residual, centres)
        codebooks[book, :, :_SPECTRUM] = centres
        residual = residual - centres[codes[book]]
    return codes, codebooks


def _spectrum(mel: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The first _SPECTRUM principal components, all by one scale."""
    mean = mel[train].mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(mel[train], rowvar=False))
    components = (mel - mean) @ vectors[:, ::-1][:, :_SPECTRUM]
    return (components / components[train].std() / 2).astype(np.float32)


def _pitch_codes(tone: np.ndarray, train: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Code 0 is unvoiced; the others are clusters of pitch and phase, given to the decoder with harmonics."""
    voiced = tone[:, 0] > 0
    octave = tone[:, 1] - tone[voiced & train, 1].mean()
    points = np.stack([_OCTAVE * octave, np.cos(tone[:, 2]), np.sin(tone[:, 2])], axis=1)
    centres = _cluster(points[voiced & train], CODEBOOK_SIZE - 1, rng)
    codes = np.where(voiced, 1 + _assign(points, centres), 0).astype(np.int16)
    phases = np.arange(1, _HARMONICS + 1) * np.arctan2(centres[:, 2], centres[:, 1])[:, None]
    voice = np.stack([np.ones(len(centres)), centres[:, 0]], axis=1)
    embedding = np.concatenate([voice, np.cos(phases), np.sin(phases)], axis=1)
    return codes, np.pad(embedding, ((1, 0), (0, 0)))


def _cluster(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    sample = points[rng.permutation(len(points))[:_SAMPLE]].astype(np.float32)
    centres, _ = kmeans2(sample, count, iter=_ROUNDS, minit="points", seed=rng)
    return centres


def _assign(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return vq(points.astype(np.float32), centres)[0].astype(np.int16)
