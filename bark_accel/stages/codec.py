"""All codebooks -> waveform: EnCodec's quantiser tables and SEANet decoder, in as many chunks as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops.backend import TORCH_CODEC
from bark_accel.ops.checks import LSTM_UNITS
from bark_accel.ops.interface import CodecOps
from bark_accel.transformer.dynamo import Compiler

from .codec_weights import CodecWeights, Conv, ConvTranspose, Lstm, ResidualBlock

_LEAST_COMPILED_FRAMES = 64


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


@dataclass
class CodecState:
    """Progress of a waveform: each layer's memory, frames taken in, samples given out."""

    conv_in: ConvState
    lstm: LstmState
    upsampling: list[tuple[ConvTransposeState, list[ResidualState]]]
    conv_out: ConvState
    frames: int = 0
    samples: int = 0


class CodecStage:
    """`EncodecResidualVectorQuantizer.decode` and `EncodecDecoder.forward`, weight_norm folded.

    The decoder is causal but for its convolutions' reflect padding at the very start. So a convolution that remembers
    its last inputs, an LSTM that remembers its state and a transposed convolution that remembers one input frame give
    the same waveform for any chunking: with the compiled ops to the bit, with torch's up to the rounding of sums that
    are split differently. EnCodec's first convolution mirrors 6 frames: the first 6 frames give no samples until a 7th
    or the end comes.
    """

    def __init__(self, weights: CodecWeights, ops: CodecOps = TORCH_CODEC, compiler: Compiler | None = None):
        self._weights = weights
        self._ops = ops
        self._lstm = _Lstm(weights.lstm, ops)
        self._compiler = compiler
        self.samples_per_frame = math.prod(u.conv.stride for u in weights.upsampling)

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self._weights.codebooks[0].device

    @property
    def cuts_right_only(self) -> bool:
        """True if no sample depends on a later frame, so that rows of one batch may end at different times."""
        return all(u.conv.trim_left == 0 for u in self._weights.upsampling)

    def run(self, codes: Tensor) -> Tensor:
        """Decode.

        Parameters
        ----------
        codes : Tensor [B, K, T] int64
            K may be smaller than the number of codebooks EnCodec has.

        Returns
        -------
        Tensor [B, S] in the model's dtype (computed in float32), S = T times the product of the upsampling ratios
        (none for T = 0).
        """
        return self.decode(self.embed(codes))

    def start(self) -> CodecState:
        """Begin a waveform."""
        upsampling = [
            (ConvTransposeState(u.conv.trim_left), [ResidualState() for _ in u.blocks])
            for u in self._weights.upsampling
        ]
        return CodecState(ConvState(), LstmState(), upsampling, ConvState())

    def push(self, state: CodecState, codes: Tensor, *, final: bool, row_frames: Tensor | None = None) -> Tensor:
        """Decode the next frames.

        Parameters
        ----------
        codes : Tensor [B, K, T] int64
        final : bool
            No more frames will come.
        row_frames : Tensor [B] int, optional
            Frames each row has in all; what comes after them is silence, and does not change what comes before.
            Not given: every row lasts as long as the longest.

        Returns
        -------
        Tensor [B, S]
            The next samples. All chunks together are what `run` gives for all codes together (row by row, each up to
            its end, where `row_frames` says so).
        """
        latents = self.embed(codes)
        is_whole = final and state.frames == 0 and row_frames is None
        if row_frames is not None:
            # Zeros are what EnCodec itself puts after a stream that is too short to be mirrored.
            latents = latents.masked_fill(_after(row_frames, state.frames, latents.shape[2])[:, None], 0)
        state.frames += codes.shape[2]
        waveform = self.decode(latents) if is_whole else self._advance(state, latents, final)
        if row_frames is not None:
            row_samples = row_frames * self.samples_per_frame
            waveform = waveform.masked_fill(_after(row_samples, state.samples, waveform.shape[1]), 0)
        state.samples += waveform.shape[1]
        return waveform

    def embed(self, codes: Tensor) -> Tensor:
        """Quantised latents [B, hidden, T] float32 of codes [B, K, T]."""
        tables = self._weights.codebooks
        latents = F.embedding(codes[:, 0], tables[0]).float()
        for codebook in range(1, codes.shape[1]):
            latents += F.embedding(codes[:, codebook], tables[codebook])
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveform [B, S] in the model's dtype of latents [B, hidden, T] float32."""
        if self._compiler is not None and self._can_be_padded(latents.shape[2]):
            return self._compiled(latents, self._compiler)
        return self._advance(self.start(), latents, final=True)

    def _can_be_padded(self, frames: int) -> bool:
        """Tell whether frames behind the last one change nothing before them, and none has to be mirrored there."""
        first, convs = self._weights.upsampling[0].conv.stride, [self._weights.conv_out]
        convs += [
            conv for upsampling in self._weights.upsampling for b in upsampling.blocks for conv in (b.conv_1, b.conv_2)
        ]
        longest = max((conv.weight.shape[0] - 1) * conv.dilation for conv in convs)
        return self.cuts_right_only and frames * first > longest

    def _compiled(self, latents: Tensor, compiler: Compiler) -> Tensor:
        """The whole waveform; all behind the LSTM by a compiled program, padded to a power of two of frames."""
        weights, frames = self._weights, latents.shape[2]
        x = _conv(self._ops, latents.transpose(1, 2), weights.conv_in, ConvState(), final=True)
        x = self._lstm(x, LstmState())
        length = max(_LEAST_COMPILED_FRAMES, 1 << (frames - 1).bit_length())
        padded = F.pad(x, (0, 0, 0, length - frames))
        rows = [compiler.run(f"sound of {length} frames", sound, weights, row) for row in padded.split(1)]
        return torch.cat(rows)[:, : frames * self.samples_per_frame].to(weights.codebooks[0].dtype)

    def _advance(self, state: CodecState, latents: Tensor, final: bool) -> Tensor:
        weights = self._weights
        x = _conv(self._ops, latents.transpose(1, 2).contiguous(), weights.conv_in, state.conv_in, final)
        x = self._lstm(x, state.lstm)
        at_once = self._ops.frames_at_once
        parts = [x] if at_once is None else x.split(max(1, at_once // max(1, len(x))), dim=1)
        waveforms = [self._upsample(state, part, final and i == len(parts) - 1) for i, part in enumerate(parts)]
        return torch.cat(waveforms, dim=1).to(weights.codebooks[0].dtype)

    def _upsample(self, state: CodecState, x: Tensor, final: bool) -> Tensor:
        """Next samples [B, S] float32 of the LSTM's outputs x [B, T, C]."""
        ops, weights = self._ops, self._weights
        for upsampling, (conv_state, block_states) in zip(weights.upsampling, state.upsampling, strict=True):
            x = _conv_transpose(ops, x, upsampling.conv, conv_state, final)
            for block, block_state in zip(upsampling.blocks, block_states, strict=True):
                x = _residual(ops, x, block, block_state, final)
        return _conv(ops, x, weights.conv_out, state.conv_out, final, elu=True)[..., 0]


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


def _after(ends: Tensor, start: int, count: int) -> Tensor:
    """[B, count] bool: which of the positions from `start` on are at or after each row's end."""
    return torch.arange(start, start + count, dtype=torch.int64, device=ends.device) >= ends[:, None]


# Time comes before the channels, [B, T, C]: then a convolution is one matrix product for each tap on a shifted view of
# its input, and nothing is copied to change layouts.


def _join(before: Tensor | None, x: Tensor) -> Tensor:
    return x if before is None else torch.cat([before, x], dim=1)


def _last(before: Tensor, x: Tensor) -> Tensor:
    """Copy as many of the last inputs as `before` has, so that the chunk itself can be freed."""
    count = before.shape[1]
    return x[:, x.shape[1] - count :].clone() if x.shape[1] >= count else torch.cat([before, x], dim=1)[:, -count:]


def _conv(
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


def _conv_transpose(ops: CodecOps, x: Tensor, conv: ConvTranspose, state: ConvTransposeState, final: bool) -> Tensor:
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


class _Lstm:
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


def _residual(ops: CodecOps, x: Tensor, block: ResidualBlock, state: ResidualState, final: bool) -> Tensor:
    shortcut = x if block.shortcut is None else _conv(ops, x, block.shortcut, state.shortcut, final)
    shortcut = _join(state.waiting, shortcut)
    inner = _conv(ops, x, block.conv_1, state.conv_1, final, elu=True)
    y = _conv(ops, inner, block.conv_2, state.conv_2, final, elu=True, residual=shortcut)
    state.waiting = None if shortcut.shape[1] == y.shape[1] else shortcut[:, y.shape[1] :]
    return y
