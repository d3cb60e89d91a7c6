"""EnCodec, whose decoder is trained to speak the codes of tokens.py: spectra at four resolutions, and the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EncodecConfig, EncodecModel

from . import loop
from .features import FFT, HOP, MEL_FILTERS, SAMPLE_RATE
from .tokens import CODEBOOK_SIZE, CODEBOOKS, EMBEDDING

_FRAMES = 40
_BATCH = 6
_WINDOWS = (128, 256, 512, 1024)
# About 55 dB under a loud harmonic: vowels differ in the valleys between formants too.
_FLOOR = 1e-3
# Mel bands are what words are told apart by.
_MEL_WEIGHT = 3.0
_WAVE_WEIGHT = 0.5


def build(codebooks: np.ndarray, seed: int) -> EncodecModel:
    """An untrained codec with the given codebooks (CODEBOOKS, CODEBOOK_SIZE, EMBEDDING)."""
    torch.manual_seed(seed)
    config = EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        upsampling_ratios=[8, 5, 4, 2],
        num_filters=8,
        hidden_size=EMBEDDING,
        num_lstm_layers=1,
        codebook_size=CODEBOOK_SIZE,
        target_bandwidths=[CODEBOOKS * 0.5],
    )
    model = EncodecModel(config)
    if len(model.quantizer.layers) != CODEBOOKS:
        raise ValueError(f"EnCodec: expected {CODEBOOKS} codebooks, got {len(model.quantizer.layers)}")
    for layer, values in zip(model.quantizer.layers, codebooks, strict=True):
        codebook: Any = layer.codebook
        codebook.embed.copy_(torch.from_numpy(values))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.cluster_size.fill_(1.0)
    return model


@torch.no_grad()
def scale_layers(decoder: nn.Module, embedded: Tensor) -> None:
    """
    Scale every convolution so that what it gives for `embedded` has unit variance, 0.4 in residual branches (LSUV,
    arXiv:1511.06422): with the default initialisation the output is too small to train in reasonable time.
    """

    def scale(target: float) -> Callable[[Any, tuple, Tensor], Tensor]:
        def hook(module: Any, _: tuple, output: Tensor) -> Tensor:
            factor = target / float(output.std())
            module.parametrizations.weight.original0.mul_(factor)
            return output * factor

        return hook

    convolutions = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    hooks = []
    for name, module in convolutions:
        if module.bias is not None:
            module.bias.zero_()
        target = 0.1 if module is convolutions[-1][1] else 0.4 if ".block.3" in name else 1.0
        hooks.append(module.register_forward_hook(scale(target)))
    decoder(embedded)
    for handle in hooks:
        handle.remove()


def train(
    model: EncodecModel,
    codes: Sequence[np.ndarray],
    audio: Sequence[np.ndarray],
    plan: loop.Plan,
    path: Path,
    seed: int,
    start: Path | None = None,
) -> None:
    """
    Train the decoder on utterances of codes (CODEBOOKS, T) and audio (samples,), or go on with `path`. `start` says
    where the weights of a trained decoder are, to train that one further.
    """
    targets = [
        np.pad(wave, (0, max(0, code.shape[1] * HOP - len(wave)))) for code, wave in zip(codes, audio, strict=True)
    ]
    weights = torch.tensor([float(code.shape[1]) for code in codes])

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picks = torch.multinomial(weights, _BATCH, replacement=True, generator=generator).tolist()
        places = torch.rand(_BATCH, generator=generator).tolist()
        rows = []
        for pick, place in zip(picks, places, strict=True):
            # One crop in eleven is the beginning of its utterance, where the decoder starts from nothing.
            start = int(max(0.0, place * 1.1 - 0.1) * max(0, codes[pick].shape[1] - _FRAMES))
            code = codes[pick][:, start : start + _FRAMES]
            wave = targets[pick][start * HOP : (start + code.shape[1]) * HOP]
            missing = _FRAMES - code.shape[1]
            rows.append((np.pad(code, ((0, 0), (0, missing)), mode="edge"), np.pad(wave, (0, missing * HOP))))
        codes_, waves = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        return codes_.long(), waves

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        code, wave = batch(generator)
        with torch.no_grad():
            embedded = model.quantizer.decode(code.transpose(0, 1))
        return spectral_loss(model.decoder(embedded)[:, 0], wave)

    if start:
        loop.load(model.decoder, start)
    elif not path.exists():
        code, _ = batch(torch.Generator().manual_seed(seed))
        scale_layers(model.decoder, model.quantizer.decode(code.transpose(0, 1)))
    loop.train(model.decoder, loss, plan, path, seed)


def spectral_loss(output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Loss of two batches of waveforms (batch, samples): log magnitudes, log mel bands, magnitudes, samples."""
    logs = mels = magnitudes = torch.zeros(())
    for size in _WINDOWS:
        window = torch.hann_window(size)
        stacked = torch.stft(torch.cat([output, target]), size, size // 4, window=window, return_complex=True)
        ours, theirs = (stacked.abs() / size**0.5).chunk(2)
        logs = logs + F.l1_loss((ours + _FLOOR).log(), (theirs + _FLOOR).log()) / len(_WINDOWS)
        magnitudes = magnitudes + (ours - theirs).norm() / theirs.norm() / len(_WINDOWS)
        if size == FFT:
            bands = torch.from_numpy(MEL_FILTERS.T).to(ours.dtype)
            mels = F.l1_loss((bands @ ours + _FLOOR).log(), (bands @ theirs + _FLOOR).log())
    wave = (output - target).norm() / target.norm()
    total = logs + _MEL_WEIGHT * mels + magnitudes + _WAVE_WEIGHT * wave
    figures = {"log": logs, "mel": mels, "magnitude": magnitudes, "wave": wave}
    return total, {name: value.item() for name, value in figures.items()}
