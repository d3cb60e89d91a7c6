"""Similarity of speakers in figures: Resemblyzer's voice encoder, without its package's dependencies.

The encoder is an LSTM that was trained to tell speakers apart (Wan et al., 2018). Of the package `Resemblyzer` only the
weights are read: its own code needs librosa and a voice detector that has to be compiled.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

INSTALL = "pip install --no-deps resemblyzer"
# What the weights were trained for.
_RATE_HZ, _WINDOW_S, _HOP_S, _MELS, _SIZE, _LAYERS = 16_000, 0.025, 0.01, 40, 256, 3
_PART_FRAMES, _PARTS_A_SECOND, _LEAST_OF_LAST = 160, 1.3, 0.75
_LOUDNESS_DB = -30
# Windows of the voice detector: quieter than the loudest by so much is silence, kept beside speech for three windows.
_SILENCE_S, _SILENCE_DB, _KEPT_BESIDE = 0.03, 40, 3


def encoder_weights() -> Path | None:
    """The file of the encoder's weights; None where Resemblyzer is not installed."""
    spec = find_spec("resemblyzer")
    found = [Path(folder) / "pretrained.pt" for folder in (spec and spec.submodule_search_locations) or ()]
    return next((file for file in found if file.is_file()), None)


class SpeakerEncoder:
    """Embeddings of voices, on the CPU.

    Raises
    ------
    ImportError
        Resemblyzer is not installed.
    """

    def __init__(self) -> None:
        file = encoder_weights()
        if file is None:
            raise ImportError(f"speaker similarity needs the weights that come with Resemblyzer: run {INSTALL}")
        with torch.device("cpu"):
            self._lstm = nn.LSTM(_MELS, _SIZE, _LAYERS, batch_first=True, dtype=torch.float32)
            self._linear = nn.Linear(_SIZE, _SIZE, dtype=torch.float32)
        state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        for name, module in (("lstm", self._lstm), ("linear", self._linear)):
            own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
            module.load_state_dict(own)

    @torch.no_grad()
    def embed(self, wave: Tensor, sample_rate: int) -> Tensor | None:
        """Embed an utterance.

        Parameters
        ----------
        wave : Tensor
            [S] float32. Under 1.6 seconds of speech say less about a voice.
        sample_rate : int
            Samples per second, at least 16 000.

        Returns
        -------
        Tensor or None
            [256] float32 of length 1; the product of two is their cosine similarity. None for silence.

        Raises
        ------
        ValueError
            A lower rate.
        """
        if sample_rate < _RATE_HZ:
            raise ValueError(f"sample_rate: expected at least {_RATE_HZ}, got {sample_rate}")
        spoken = _spoken(wave.detach().float().cpu(), sample_rate)
        if not len(spoken):
            return None
        _, (hidden, _) = self._lstm(_parts(_mels(_at_one_loudness(spoken), sample_rate), len(spoken) / sample_rate))
        parts = F.normalize(self._linear(hidden[-1]).relu(), dim=1)
        return F.normalize(parts.mean(0), dim=0)


def _spoken(wave: Tensor, sample_rate: int) -> Tensor:
    """The samples without longer silences."""
    size = round(_SILENCE_S * sample_rate)
    windows = wave[: len(wave) // size * size].reshape(-1, size)
    power = windows.square().mean(1)
    if not len(power) or not 0 < power.max() < math.inf:
        return wave[:0]
    loud = (power > power.max() * 10 ** (-_SILENCE_DB / 10)).float()
    kept = F.max_pool1d(loud[None], 2 * _KEPT_BESIDE + 1, stride=1, padding=_KEPT_BESIDE)[0] > 0
    return windows[kept].flatten()


def _at_one_loudness(wave: Tensor) -> Tensor:
    return wave * (10 ** (_LOUDNESS_DB / 20) / wave.square().mean().sqrt())


def _mels(wave: Tensor, sample_rate: int) -> Tensor:
    """Power [frames, mels] of what a resampled wave at the encoder's rate would have.

    The window lasts as long at every rate, so bins are the same frequencies: those above are left out.
    """
    size, own = (round(_WINDOW_S * rate) for rate in (sample_rate, _RATE_HZ))
    bins = own // 2 + 1
    window = torch.hann_window(size, dtype=torch.float32, device="cpu")
    hop = round(_HOP_S * sample_rate)
    power = torch.stft(wave, size, hop, window=window, pad_mode="constant", return_complex=True).abs().square()[:bins]
    filters = mel_filter_bank(bins, _MELS, 0.0, _RATE_HZ / 2, _RATE_HZ, norm="slaney", mel_scale="slaney")
    return (torch.from_numpy(filters.astype(np.float32)).T @ power).T * (own / size) ** 2


def _parts(mels: Tensor, seconds: float) -> Tensor:
    """Overlapping parts [N, frames, mels] of 1.6 seconds, the last with silence after it where it is long enough."""
    step, frames = round(1 / _PARTS_A_SECOND / _HOP_S), math.ceil(seconds / _HOP_S)
    starts = [*range(0, max(1, frames - _PART_FRAMES + step + 1), step)]
    if len(starts) > 1 and (seconds / _HOP_S - starts[-1]) / _PART_FRAMES < _LEAST_OF_LAST:
        starts.pop()
    padded = F.pad(mels, (0, 0, 0, max(0, starts[-1] + _PART_FRAMES - len(mels))))
    return torch.stack([padded[start : start + _PART_FRAMES] for start in starts])
