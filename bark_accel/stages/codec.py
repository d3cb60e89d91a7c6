"""All codebooks -> waveform: EnCodec's quantiser tables and SEANet decoder, in as many chunks as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """`inputs` [B, T, C]: the inputs that still reach into the next output; `skip`: samples left to cut."""

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
    the same waveform for any chunking, up to the rounding of sums that are split differently. EnCodec's first
    convolution mirrors 6 frames: the first 6 frames give no samples until a 7th or the end comes.
    """

    def __init__(self, weights: CodecWeights, compiler: Compiler | None = None):
        self._weights = weights
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
        x = _conv(latents.transpose(1, 2), weights.conv_in, ConvState(), final=True)
        x = _lstm(x, weights.lstm, LstmState())
        length = max(_LEAST_COMPILED_FRAMES, 1 << (frames - 1).bit_length())
        padded = F.pad(x, (0, 0, 0, length - frames))
        rows = [compiler.run(f"sound of {length} frames", sound, weights, row) for row in padded.split(1)]
        return torch.cat(rows)[:, : frames * self.samples_per_frame].to(weights.codebooks[0].dtype)

    def _advance(self, state: CodecState, latents: Tensor, final: bool) -> Tensor:
        weights = self._weights
        x = _conv(latents.transpose(1, 2), weights.conv_in, state.conv_in, final)
        x = _lstm(x, weights.lstm, state.lstm)
        for upsampling, (conv_state, block_states) in zip(weights.upsampling, state.upsampling, strict=True):
            x = _conv_transpose(F.elu(x, inplace=True), upsampling.conv, conv_state, final)
            for block, block_state in zip(upsampling.blocks, block_states, strict=True):
                x = _residual(x, block, block_state, final)
        waveform = _conv(x, weights.conv_out, state.conv_out, final, elu=True)
        return waveform[..., 0].to(weights.codebooks[0].dtype)


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
    taps = conv.weight.reshape(groups, inputs, conv.stride, columns // conv.stride).permute(1, 3, 0, 2)
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


def _conv(x: Tensor, conv: Conv, state: ConvState, final: bool, *, elu: bool = False) -> Tensor:
    """Next outputs [B, T', out] of inputs [B, T, in], of their ELU if asked for."""
    taps, _, outputs = conv.weight.shape
    left = (taps - 1) * conv.dilation
    held = 0 if state.inputs is None else state.inputs.shape[1]
    waits = held + x.shape[1] == 0 or (conv.pad_mode == "reflect" and held + x.shape[1] <= left and not final)
    if waits and not state.started:
        state.inputs = _prepend(0, state.inputs, x, elu)
        return x.new_empty(x.shape[0], 0, outputs)
    x = _prepend(0 if state.started else left, state.inputs, x, elu)
    if not state.started:
        _mirror_(x, left, conv.pad_mode)
        state.started = True
    # A copy, so that the chunk itself can be freed.
    state.inputs = None if final else x[:, x.shape[1] - left :].clone()
    if x.shape[1] <= left:
        return x.new_empty(x.shape[0], 0, outputs)
    return _products(x, conv, x.shape[1] - left)


def _prepend(space: int, before: Tensor | None, x: Tensor, elu: bool) -> Tensor:
    """`space` free rows, then what came before, then x [B, T, C] or its ELU."""
    held = 0 if before is None else before.shape[1]
    if space + held == 0:
        return F.elu(x) if elu else x
    joined = x.new_empty(x.shape[0], space + held + x.shape[1], x.shape[2])
    if before is not None:
        joined[:, space : space + held] = before
    inner = joined[:, space + held :]
    if elu:
        torch.ops.aten.elu.out(x, out=inner)
    else:
        inner.copy_(x)
    return joined


def _mirror_(x: Tensor, left: int, mode: str) -> None:
    """Fill the first `left` rows of x [B, left + T, C] with what padding by `mode` puts before the others."""
    if left == 0:
        return
    inner = x[:, left:]
    if mode == "reflect":
        # EnCodec extends what is too short to be mirrored by zeros.
        mirrored = min(left, inner.shape[1] - 1)
        x[:, left - mirrored : left] = inner[:, 1 : mirrored + 1].flip(1)
        x[:, : left - mirrored] = 0
    else:
        x[:, :left] = F.pad(inner.transpose(1, 2), (left, 0), mode)[..., :left].transpose(1, 2)


def _products(x: Tensor, conv: Conv, frames: int) -> Tensor:
    """[B, frames, out] of the padded input [B, left + frames, in]."""
    shifts = [tap * conv.dilation for tap in range(conv.weight.shape[0])]
    if conv.weight.shape[2] == 1:
        # All taps in one product; with one column each, products would not pay. Time comes first here, too: with the
        # operands the other way round, MKL's sums depend on the number of threads.
        by_tap = x.new_empty(x.shape[0], x.shape[1], conv.weight.shape[0])
        for row, out in zip(x, by_tap, strict=True):
            torch.mm(row, conv.weight[:, :, 0].T, out=out)
        y = torch.stack([by_tap[:, shift : shift + frames, tap] for tap, shift in enumerate(shifts)]).sum(0)
        return (y if conv.bias is None else y.add_(conv.bias))[..., None]
    y = _biased(x, frames, conv.bias, conv.weight.shape[2])
    for row, out in zip(x, y, strict=True):
        for weight, shift in zip(conv.weight, shifts, strict=True):
            out.addmm_(row[shift : shift + frames], weight)
    return y


def _biased(like: Tensor, frames: int, bias: Tensor | None, outputs: int) -> Tensor:
    """[B, frames, outputs], the bias everywhere: what products are added to."""
    if bias is None:
        return like.new_zeros(like.shape[0], frames, outputs)
    return bias.repeat(like.shape[0], frames, 1)  # a copy, also of a single row


def _conv_transpose(x: Tensor, conv: ConvTranspose, state: ConvTransposeState, final: bool) -> Tensor:
    """Next outputs [B, T', out] of x [B, T, in]: each adds to as many strides of output as the kernel is long."""
    before = 0 if state.inputs is None else state.inputs.shape[1]
    x = _join(state.inputs, x)
    frames, outputs = x.shape[1], conv.weight.shape[2] // conv.stride
    if frames == 0:
        return x.new_empty(x.shape[0], 0, outputs)
    overlap = conv.weight.shape[0] - 1
    state.inputs = None if final else x[:, max(0, frames - overlap) :].clone()
    # Samples past the last whole stride still miss the next frame's contribution; only the final chunk emits them.
    beyond = conv.trim_left if final else 0
    strides = frames + math.ceil(beyond / conv.stride)
    y = _biased(x, strides, None if conv.bias is None else conv.bias.repeat(conv.stride), conv.weight.shape[2])
    for row, out in zip(x, y, strict=True):
        for shift, weight in enumerate(conv.weight):
            count = min(frames, strides - shift)
            if count > 0:
                out[shift : shift + count].addmm_(row[:count], weight)
    y = y.unflatten(2, (conv.stride, outputs)).flatten(1, 2)[:, before * conv.stride : frames * conv.stride + beyond]
    skip, state.skip = state.skip, max(0, state.skip - y.shape[1])
    return y[:, skip:]


def _lstm(x: Tensor, lstm: Lstm, state: LstmState) -> Tensor:
    if x.shape[1] == 0:
        return x
    steps = x.transpose(0, 1)
    if state.memory is None:
        zeros = steps.new_zeros(lstm.num_layers, steps.shape[1], lstm.size)
        state.memory = zeros, zeros
    output, *memory = torch.lstm(steps, state.memory, lstm.flat, True, lstm.num_layers, 0.0, False, False, False)
    state.memory = memory[0], memory[1]
    return output.add_(steps).transpose(0, 1)


def _residual(x: Tensor, block: ResidualBlock, state: ResidualState, final: bool) -> Tensor:
    shortcut = x if block.shortcut is None else _conv(x, block.shortcut, state.shortcut, final)
    shortcut = _join(state.waiting, shortcut)
    inner = _conv(x, block.conv_1, state.conv_1, final, elu=True)
    y = _conv(inner, block.conv_2, state.conv_2, final, elu=True)
    state.waiting = None if shortcut.shape[1] == y.shape[1] else shortcut[:, y.shape[1] :]
    return y.add_(shortcut[:, : y.shape[1]])
