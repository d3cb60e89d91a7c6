"""All codebooks -> waveform: EnCodec's quantiser tables and SEANet decoder, in as many chunks as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import CodecWeights, Conv, ConvTranspose, Lstm, ResidualBlock


@dataclass
class ConvState:
    """`inputs` [B, C, T]: the last (k - 1) * dilation inputs; before the first output, all that came."""

    inputs: Tensor | None = None
    started: bool = False


@dataclass
class ConvTransposeState:
    """`inputs` [B, C, T]: the inputs that still reach into the next output; `skip`: samples left to cut."""

    skip: int
    inputs: Tensor | None = None


@dataclass
class LstmState:
    """Hidden and cell state [layers, B, size] of the last frame."""

    memory: tuple[Tensor, Tensor] | None = None


@dataclass
class ResidualState:
    """`waiting` [B, C, T]: the shortcut's outputs for which the convolutions have none yet."""

    conv_1: ConvState = field(default_factory=ConvState)
    conv_2: ConvState = field(default_factory=ConvState)
    shortcut: ConvState = field(default_factory=ConvState)
    waiting: Tensor | None = None


@dataclass
class CodecState:
    """Where a waveform stands: each layer's memory, frames taken in, samples given out."""

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
    the same waveform for any chunking, up to the rounding of sums that are split differently. EnCodec's first
    convolution mirrors 6 frames: the first 6 frames give no samples until a 7th or the end comes.
    """

    def __init__(self, weights: CodecWeights):
        self._weights = weights
        self.samples_per_frame = math.prod(u.conv.stride for u in weights.upsampling)

    @property
    def cuts_right_only(self) -> bool:
        """Whether no sample depends on a later frame, so that rows of one batch may end at different times."""
        return all(u.conv.trim_left == 0 for u in self._weights.upsampling)

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
        if row_frames is not None:
            # Zeros are what EnCodec itself puts after a stream that is too short to be mirrored.
            latents = latents.masked_fill(_after(row_frames, state.frames, latents.shape[2])[:, None], 0)
        state.frames += codes.shape[2]
        waveform = self._advance(state, latents, final)
        if row_frames is not None:
            row_samples = row_frames * self.samples_per_frame
            waveform = waveform.masked_fill(_after(row_samples, state.samples, waveform.shape[1]), 0)
        state.samples += waveform.shape[1]
        return waveform

    def embed(self, codes: Tensor) -> Tensor:
        """Quantised latents [B, hidden, T] of codes [B, K, T]."""
        tables = self._weights.codebooks
        latents = F.embedding(codes[:, 0], tables[0])
        for codebook in range(1, codes.shape[1]):
            latents = latents + F.embedding(codes[:, codebook], tables[codebook])
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveform [B, S] of latents [B, hidden, T]."""
        return self._advance(self.start(), latents, final=True)

    def _advance(self, state: CodecState, latents: Tensor, final: bool) -> Tensor:
        weights = self._weights
        x = _lstm(_conv(latents, weights.conv_in, state.conv_in, final), weights.lstm, state.lstm)
        for upsampling, (conv_state, block_states) in zip(weights.upsampling, state.upsampling, strict=True):
            x = _conv_transpose(F.elu(x), upsampling.conv, conv_state, final)
            for block, block_state in zip(upsampling.blocks, block_states, strict=True):
                x = _residual(x, block, block_state, final)
        return _conv(F.elu(x), weights.conv_out, state.conv_out, final).squeeze(1)


def _after(ends: Tensor, start: int, count: int) -> Tensor:
    """[B, count] bool: which of the positions from `start` on are at or after each row's end."""
    return torch.arange(start, start + count, device=ends.device) >= ends[:, None]


def _join(before: Tensor | None, x: Tensor) -> Tensor:
    return x if before is None else torch.cat([before, x], dim=-1)


def _conv(x: Tensor, conv: Conv, state: ConvState, final: bool) -> Tensor:
    left = (conv.weight.shape[2] - 1) * conv.dilation
    x = _join(state.inputs, x)
    if not state.started:
        mirrors_more = conv.pad_mode == "reflect" and x.shape[-1] <= left and not final
        if x.shape[-1] == 0 or mirrors_more:
            state.inputs = x
            return x.new_empty(x.shape[0], conv.weight.shape[0], 0)
        x = _pad_left(x, left, conv.pad_mode)
        state.started = True
    # A copy, so that the chunk itself can be freed.
    state.inputs = None if final else x[..., x.shape[-1] - left :].clone()
    if x.shape[-1] <= left:
        return x.new_empty(x.shape[0], conv.weight.shape[0], 0)
    return F.conv1d(x, conv.weight, conv.bias, dilation=conv.dilation)


def _pad_left(x: Tensor, left: int, mode: str) -> Tensor:
    if left == 0:
        return x
    if mode != "reflect":
        return F.pad(x, (left, 0), mode)
    # A reflection needs more samples than it mirrors; EnCodec lends it zeros and takes them back.
    extra = max(0, left + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, extra)), (left, 0), mode)
    return padded[..., : padded.shape[-1] - extra]


def _conv_transpose(x: Tensor, conv: ConvTranspose, state: ConvTransposeState, final: bool) -> Tensor:
    before = 0 if state.inputs is None else state.inputs.shape[-1]
    x = _join(state.inputs, x)
    frames = x.shape[-1]
    if frames == 0:
        return x.new_empty(x.shape[0], conv.weight.shape[1], 0)
    overlap = math.ceil(conv.weight.shape[2] / conv.stride) - 1
    state.inputs = None if final else x[..., max(0, frames - overlap) :].clone()
    y = F.conv_transpose1d(x, conv.weight, conv.bias, stride=conv.stride)
    # What lies beyond the last whole stride still lacks the next frame's share; at the end it is cut or complete.
    y = y[..., before * conv.stride : frames * conv.stride + (conv.trim_left if final else 0)]
    skip, state.skip = state.skip, max(0, state.skip - y.shape[-1])
    return y[..., skip:]


def _lstm(x: Tensor, lstm: Lstm, state: LstmState) -> Tensor:
    if x.shape[-1] == 0:
        return x
    steps = x.permute(2, 0, 1)
    if state.memory is None:
        zeros = steps.new_zeros(lstm.num_layers, steps.shape[1], lstm.size)
        state.memory = zeros, zeros
    output, *memory = torch.lstm(steps, state.memory, lstm.flat, True, lstm.num_layers, 0.0, False, False, False)
    state.memory = memory[0], memory[1]
    return (output + steps).permute(1, 2, 0)


def _residual(x: Tensor, block: ResidualBlock, state: ResidualState, final: bool) -> Tensor:
    shortcut = x if block.shortcut is None else _conv(x, block.shortcut, state.shortcut, final)
    shortcut = _join(state.waiting, shortcut)
    inner = _conv(F.elu(x), block.conv_1, state.conv_1, final)
    y = _conv(F.elu(inner), block.conv_2, state.conv_2, final)
    state.waiting = None if shortcut.shape[-1] == y.shape[-1] else shortcut[..., y.shape[-1] :]
    return shortcut[..., : y.shape[-1]] + y
