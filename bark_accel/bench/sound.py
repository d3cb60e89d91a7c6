"""Distances between two sounds of the same length, in dB: log spectra and mel cepstra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW_S = 0.032
_BANDS, _COEFFICIENTS = 40, 13
# Powers this far below the loudest are heard as silence: 80 dB.
_FLOOR = 1e-8


def log_spectral_distance(wave: Tensor, expected: Tensor, sample_rate: int) -> float:
    """Measure the root mean square difference of log power spectra, averaged over frames, in dB.

    Parameters
    ----------
    wave, expected : Tensor
        [S] float32.
    sample_rate : int
        Samples per second.
    """
    powers = [_spectrum(w, sample_rate) for w in (wave, expected)]
    floor = powers[1].max() * _FLOOR
    levels = [10 * power.clamp(min=floor).log10() for power in powers]
    return (levels[0] - levels[1]).square().mean(0).sqrt().mean().item()


def mel_cepstral_distortion(wave: Tensor, expected: Tensor, sample_rate: int) -> float:
    """Measure the distance of mel-cepstral coefficients 1 to 13, averaged over frames, in dB (Kubichek, 1993).

    Parameters
    ----------
    wave, expected : Tensor
        [S] float32.
    sample_rate : int
        Samples per second.
    """
    floor = _spectrum(expected, sample_rate).max() * _FLOOR
    cepstra = [_cepstrum(w, floor, sample_rate) for w in (wave, expected)]
    difference = (cepstra[0] - cepstra[1])[1 : _COEFFICIENTS + 1]
    return (10 / math.log(10) * (2 * difference.square().sum(0)).sqrt()).mean().item()


def _spectrum(wave: Tensor, sample_rate: int) -> Tensor:
    """Power [frequencies, frames], a frame every quarter of a window."""
    size = round(sample_rate * WINDOW_S)
    window = torch.hann_window(size, dtype=torch.float32, device=wave.device)
    return torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().square()


def _cepstrum(wave: Tensor, floor: Tensor, sample_rate: int) -> Tensor:
    power = _spectrum(wave, sample_rate)
    bands = _mel_bands(sample_rate, len(power)).to(power.device)
    k = torch.arange(_BANDS, dtype=torch.float32, device=power.device)
    cosines = torch.cos(torch.pi / _BANDS * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / _BANDS)
    return cosines @ (bands @ power).clamp(min=floor).log()


def _mel_bands(sample_rate: int, bins: int) -> Tensor:
    """Triangles [bands, bins], evenly spaced on the mel scale."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mels = torch.linspace(0, top, _BANDS + 2, dtype=torch.float32, device="cpu")
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float32, device="cpu")[None]
    low, mid, high = (edges[i : _BANDS + i, None] for i in range(3))
    return torch.minimum((hertz - low) / (mid - low), (high - hertz) / (high - mid)).clamp(min=0)
