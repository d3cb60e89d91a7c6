"""The codec's layers over a waveform that comes in chunks: each keeps in a state what it still needs of earlier ones.

Time comes before the channels, [B, T, C]: then a convolution is one matrix product for each tap on a shifted view of
its input, and nothing is copied to change layouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops.checks import LSTM_UNITS
from bark_accel.ops.interface import CodecOps

from .codec_weights import Conv, ConvTranspose, Lstm, ResidualBlock


@dataclass
class ConvState:
    """`inputs` [B, T, C]: the last (k - 1) * dilation inputs; before the first output, all that came."""

    inputs: Tensor | None = None
    started: bool = False


@dataclass
class ConvTransposeState:
    """`inputs` [B, T, C]: those that still reach into the next output, zeros at first; `skip`: samples left to cut."""

    skip: int
    inputs: Tensor | None = None


@dataclass
class LstmState:
    """Hidden and cell state [layers, B, size] of the last frame."""

    memory: tuple[Tensor, Tensor] | None = None


@dataclass
class ResidualState:
    """`waiting` [B, T, C]: the shortcut's outputs for which the convolutions have none yet."""

    conv_1: ConvState = field(default_factory=ConvState)
    conv_2: ConvState = field(default_factory=ConvState)
    shortcut: ConvState = field(default_factory=ConvState)
    waiting: Tensor | None = None


def _join(before: Tensor | None, x: Tensor) -> Tensor:
    return x if before is None else torch.cat([before, x], dim=1)


def _last(before: Tensor, x: Tensor) -> Tensor:
    """Copy as many of the last inputs as `before` has, so that the chunk itself can be freed."""
    count = before.shape[1]
    return x[:, x.shape[1] - count :].clone() if x.shape[1] >= count else torch.cat([before, x], dim=1)[:, -count:]


def stream_conv(
    ops: CodecOps,
    x: Tensor,
    conv: Conv,
    state: ConvState,
    final: bool,
    *,
    elu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Next outputs [B, T', out] of inputs [B, T, in], or of their ELU, plus the first T' of `residual`."""
    taps, _, outputs = conv.weight.shape
    left = (taps - 1) * conv.dilation
    if not state.started:
        x = _join(state.inputs, x)
        frames = x.shape[1]
        if frames == 0 or (conv.pad_mode == "reflect" and frames <= left and not final):
            state.inputs = x
            return x.new_empty(x.shape[0], 0, outputs)
        state.inputs = _padding(x, left, conv.pad_mode)
        state.started = True
    before = state.inputs
    assert before is not None, "inputs after the final ones"
    state.inputs = None if final else _last(before, x)
    if residual is not None:
        residual = residual[:, : x.shape[1]]
    return ops.float32_conv(x, before, conv.weight, conv.bias, residual, conv.dilation, elu)


def _padding(x: Tensor, left: int, mode: str) -> Tensor:
    """Make the `left` inputs that padding by `mode` puts before x [B, T, C]."""
    if left == 0:
        return x[:, :0]
    if mode != "reflect":
        return F.pad(x.transpose(1, 2), (left, 0), mode)[..., :left].transpose(1, 2).contiguous()
    # EnCodec extends what is too short to be mirrored by zeros.
    mirrored = min(left, x.shape[1] - 1)
    return F.pad(x[:, 1 : mirrored + 1].flip(1), (0, 0, left - mirrored, 0))


def stream_conv_transpose(
    ops: CodecOps, x: Tensor, conv: ConvTranspose, state: ConvTransposeState, final: bool
) -> Tensor:
    """Next outputs [B, T', out] of the ELU of x [B, T, in]: each adds to as many strides of output as it is long."""
    groups, _, columns = conv.weight.shape
    frames, outputs = x.shape[1], columns // conv.stride
    if frames == 0 and state.inputs is None:
        return x.new_empty(x.shape[0], 0, outputs)
    before = x.new_zeros(x.shape[0], groups - 1, x.shape[2]) if state.inputs is None else state.inputs
    state.inputs = None if final else _last(before, x)
    # Samples past the last whole stride still miss the next frame's contribution; only the final chunk emits them.
    beyond = conv.trim_left if final else 0
    if beyond:
        x = F.pad(x, (0, 0, 0, math.ceil(beyond / conv.stride)))
    bias = None if conv.bias is None else conv.bias.repeat(conv.stride)
    y = ops.float32_conv(x, before, conv.weight, bias, None, 1, True)
    y = y.view(x.shape[0], x.shape[1] * conv.stride, outputs)[:, : frames * conv.stride + beyond]
    skip, state.skip = state.skip, max(0, state.skip - y.shape[1])
    return y[:, skip:]


class StreamingLstm:
    """All layers of the LSTM, laid out for the compiled op where there is one, and its input added to its output."""

    def __init__(self, lstm: Lstm, ops: CodecOps):
        self._lstm = lstm
        self._ops = ops
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []
        if ops.lstm_layer is not None and lstm.size % LSTM_UNITS == 0:
            self._layers = [_laid_out(*lstm.flat[4 * i : 4 * i + 4]) for i in range(lstm.num_layers)]

    def __call__(self, x: Tensor, state: LstmState) -> Tensor:
        """Outputs [B, T, C] of x [B, T, C]."""
        if x.shape[1] == 0:
            return x
        if state.memory is None:
            zeros = x.new_zeros(2, self._lstm.num_layers, x.shape[0], self._lstm.size)
            state.memory = zeros[0], zeros[1]
        if self._layers:
            return self._compiled(x, *state.memory)
        steps, flat, layers = x.transpose(0, 1), self._lstm.flat, self._lstm.num_layers
        output, *memory = torch.lstm(steps, state.memory, flat, True, layers, 0.0, False, False, False)
        state.memory = memory[0], memory[1]
        return output.add_(steps).transpose(0, 1)

    def _compiled(self, x: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Outputs by the compiled op, which leaves the last state in `hidden` and `cell` [layers, B, size]."""
        assert self._ops.lstm_layer is not None
        y = x
        for (inputs, bias, weight), *memory in zip(self._layers, hidden, cell, strict=True):
            gates = self._ops.float32_linear(y.flatten(0, 1), inputs, bias).view(*y.shape[:2], len(inputs))
            y = self._ops.lstm_layer(gates, weight, *memory)
        return y.add_(x)


def _laid_out(inputs: Tensor, hidden: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's input weights, both biases in one, and its hidden weights as `lstm_layer` reads them."""
    size = hidden.shape[1]
    weight = hidden.view(4, size // LSTM_UNITS, LSTM_UNITS, size).permute(1, 3, 0, 2).contiguous()
    return inputs, biases[0] + biases[1], weight


def stream_residual(ops: CodecOps, x: Tensor, block: ResidualBlock, state: ResidualState, final: bool) -> Tensor:
    shortcut = x if block.shortcut is None else stream_conv(ops, x, block.shortcut, state.shortcut, final)
    shortcut = _join(state.waiting, shortcut)
    inner = stream_conv(ops, x, block.conv_1, state.conv_1, final, elu=True)
    y = stream_conv(ops, inner, block.conv_2, state.conv_2, final, elu=True, residual=shortcut)
    state.waiting = None if shortcut.shape[1] == y.shape[1] else shortcut[:, y.shape[1] :]
    return y
