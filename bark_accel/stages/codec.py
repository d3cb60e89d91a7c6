"""All codebooks -> waveform: EnCodec's quantiser tables and SEANet decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import CodecWeights, Conv, ConvTranspose, Lstm, ResidualBlock


class CodecStage:
    """`EncodecResidualVectorQuantizer.decode` and `EncodecDecoder.forward`, weight_norm folded."""

    def __init__(self, weights: CodecWeights):
        self._weights = weights

    def run(self, codes: Tensor) -> Tensor:
        """Decode.

        Parameters
        ----------
        codes : Tensor [B, K, T] int64
            K may be smaller than the number of codebooks EnCodec has.

        Returns
        -------
        Tensor [B, S], S = T times the product of the upsampling ratios (none for T = 0).
        """
        return self.decode(self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Quantised latents [B, hidden, T] of codes [B, K, T]."""
        tables = self._weights.codebooks
        latents = F.embedding(codes[:, 0], tables[0])
        for codebook in range(1, codes.shape[1]):
            latents = latents + F.embedding(codes[:, codebook], tables[codebook])
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveform [B, S] of latents [B, hidden, T]."""
        if latents.shape[-1] == 0:
            return latents.new_zeros(latents.shape[0], 0)
        weights = self._weights
        x = _lstm(_conv(latents, weights.conv_in), weights.lstm)
        for upsampling in weights.upsampling:
            x = _conv_transpose(F.elu(x), upsampling.conv)
            for block in upsampling.blocks:
                x = _residual(x, block)
        return _conv(F.elu(x), weights.conv_out).squeeze(1)


def _conv(x: Tensor, conv: Conv) -> Tensor:
    left = (conv.weight.shape[2] - 1) * conv.dilation
    return F.conv1d(_pad_left(x, left, conv.pad_mode), conv.weight, conv.bias, dilation=conv.dilation)


def _pad_left(x: Tensor, left: int, mode: str) -> Tensor:
    if left == 0:
        return x
    if mode != "reflect":
        return F.pad(x, (left, 0), mode)
    # A reflection needs more samples than it mirrors; EnCodec lends it zeros and takes them back.
    extra = max(0, left + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, extra)), (left, 0), mode)
    return padded[..., : padded.shape[-1] - extra]


def _conv_transpose(x: Tensor, conv: ConvTranspose) -> Tensor:
    y = F.conv_transpose1d(x, conv.weight, conv.bias, stride=conv.stride)
    return y[..., conv.trim_left : y.shape[-1] - conv.trim_right]


def _lstm(x: Tensor, lstm: Lstm) -> Tensor:
    steps = x.permute(2, 0, 1)
    zeros = steps.new_zeros(lstm.num_layers, steps.shape[1], lstm.size)
    output = torch.lstm(steps, (zeros, zeros), lstm.flat, True, lstm.num_layers, 0.0, False, False, False)[0]
    return (output + steps).permute(1, 2, 0)


def _residual(x: Tensor, block: ResidualBlock) -> Tensor:
    shortcut = x if block.shortcut is None else _conv(x, block.shortcut)
    return shortcut + _conv(F.elu(_conv(F.elu(x), block.conv_1)), block.conv_2)
