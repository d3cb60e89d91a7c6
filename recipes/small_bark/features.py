"""Features of a frame of speech: its spectrum, twice, and its pitch with the fundamental's phase at the frame's end.

The codec quantises these features instead of latents that it learns. So the codes exist before any training, they hold
the phase apart from the spectrum, and the decoder, which is causal, is told where a frame ends.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import median_filter

SAMPLE_RATE = 16_000
HOP = 320
MEL_BANDS = 32
_WINDOW = 400
FFT = 512
# Sample of a frame on which its first and its second spectrum are centred.
_CENTRES = (HOP // 2 + 40, HOP + 40)
_FLOOR = 1e-3
_LAGS = (SAMPLE_RATE // 320, SAMPLE_RATE // 60)
_PITCH_WINDOW = 480
_VOICED = 0.6
_LOUD = 0.01


def frames(samples: int) -> int:
    """Frames of an utterance of `samples` samples: whole semantic tokens of two frames each."""
    return 2 * -(-samples // (2 * HOP))


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Natural log of the mel magnitudes: shape (frames, 2, MEL_BANDS), float32."""
    count = frames(len(audio))
    padded = np.pad(audio, (_WINDOW, (count + 2) * HOP + _WINDOW - len(audio)))
    starts = np.arange(count)[:, None] * HOP + np.array(_CENTRES) - _WINDOW // 2 + _WINDOW
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[starts] * np.hanning(_WINDOW)
    magnitude = np.abs(rfft(windows, FFT)) @ MEL_FILTERS
    return np.log(np.maximum(magnitude, _FLOOR)).astype(np.float32)


def pitch(audio: np.ndarray) -> np.ndarray:
    """Voiced (0 or 1), log2 of the fundamental in Hz (0 where unvoiced), its phase in radians: shape (frames, 3)."""
    count = frames(len(audio))
    size = _PITCH_WINDOW + _LAGS[1]
    padded = np.pad(audio, (size, count * HOP + size - len(audio)))
    starts = (np.arange(count) + 1) * HOP - size // 2 + size
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[starts].astype(np.float64)
    correlation = _normalised_correlation(windows)
    best = correlation.max(axis=1)
    # The shortest lag that is about as good as the best one: its multiples are as good.
    good = correlation >= 0.85 * best[:, None]
    peak = np.pad(correlation, ((0, 0), (1, 1)), constant_values=-1.0)
    good &= (peak[:, 1:-1] >= peak[:, :-2]) & (peak[:, 1:-1] >= peak[:, 2:])
    lag = _LAGS[0] + good.argmax(axis=1)
    loud = np.sqrt((windows**2).mean(axis=1)) > _LOUD
    voiced = (best > _VOICED) & loud & good.any(axis=1)
    frequency = SAMPLE_RATE / median_filter(lag.astype(float), 3)
    time = (np.arange(size) - size // 2) / SAMPLE_RATE
    wave = np.exp(-2j * np.pi * frequency[:, None] * time) * np.hanning(size)
    phase = np.angle((windows * wave).sum(axis=1))
    return np.stack([voiced, voiced * np.log2(frequency), voiced * phase], axis=1).astype(np.float32)


def _normalised_correlation(windows: np.ndarray) -> np.ndarray:
    """Correlate the first _PITCH_WINDOW samples with those of each lag: shape (frames, lags)."""
    size = next_fast_len(windows.shape[1], real=True)
    spectrum = rfft(windows, size)
    head = rfft(windows[:, :_PITCH_WINDOW], size)
    products = irfft(spectrum * head.conj(), size)[:, _LAGS[0] : _LAGS[1]]
    sums = np.cumsum(np.pad(windows**2, ((0, 0), (1, 0))), axis=1)
    lags = np.arange(*_LAGS)
    energy = sums[:, lags + _PITCH_WINDOW] - sums[:, lags]
    return products / np.sqrt(energy * sums[:, _PITCH_WINDOW, None] + 1e-6)


def _mel_filters() -> np.ndarray:
    """Triangles, equally wide on the mel scale (2595 log10(1 + f / 700)): shape (FFT // 2 + 1, MEL_BANDS)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    frequency = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


MEL_FILTERS = _mel_filters()
