"""The codec's layers behind its LSTM, over a whole waveform and in plain torch: a function for other compilers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .codec_weights import CodecWeights, Conv, ConvTranspose


def sound(weights: CodecWeights, x: Tensor) -> Tensor:
    """Waveform [B, S] float32 of the LSTM's outputs x [B, T, C], as a function of tensors in plain torch."""
    x = x.transpose(1, 2)
    for upsampling in weights.upsampling:
        x = _whole_transposed(F.elu(x), upsampling.conv)
        for block in upsampling.blocks:
            shortcut = x if block.shortcut is None else _whole(x, block.shortcut)
            x = _whole(F.elu(_whole(F.elu(x), block.conv_1)), block.conv_2) + shortcut
    return _whole(F.elu(x), weights.conv_out)[:, 0]


def _whole(x: Tensor, conv: Conv) -> Tensor:
    """All outputs [B, out, T] of x [B, in, T]."""
    left = (conv.weight.shape[0] - 1) * conv.dilation
    x = F.pad(x, (left, 0), conv.pad_mode) if left else x
    return F.conv1d(x, conv.weight.permute(2, 1, 0), conv.bias, dilation=conv.dilation)


def _whole_transposed(x: Tensor, conv: ConvTranspose) -> Tensor:
    """All outputs [B, out, stride * T] of x [B, in, T]."""
    groups, inputs, columns = conv.weight.shape
    taps = conv.weight.flip(0).reshape(groups, inputs, conv.stride, columns // conv.stride).permute(1, 3, 0, 2)
    taps = taps.reshape(inputs, columns // conv.stride, groups * conv.stride)[..., : conv.kernel_size]
    y = F.conv_transpose1d(x, taps, conv.bias, conv.stride)
    return y[..., conv.trim_left : y.shape[2] - conv.trim_right]
