"""All codebooks -> waveform: EnCodec's quantiser tables and SEANet decoder, in as many chunks as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops.backend import TORCH_CODEC
from bark_accel.ops.interface import CodecOps
from bark_accel.transformer.dynamo import Compiler

from .codec_layers import (
    ConvState,
    ConvTransposeState,
    LstmState,
    ResidualState,
    StreamingLstm,
    stream_conv,
    stream_conv_transpose,
    stream_residual,
)
from .codec_program import sound
from .codec_weights import CodecWeights

_LEAST_COMPILED_FRAMES = 64


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
        self._lstm = StreamingLstm(weights.lstm, ops)
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
        x = stream_conv(self._ops, latents.transpose(1, 2), weights.conv_in, ConvState(), final=True)
        x = self._lstm(x, LstmState())
        length = max(_LEAST_COMPILED_FRAMES, 1 << (frames - 1).bit_length())
        padded = F.pad(x, (0, 0, 0, length - frames))
        rows = [compiler.run(f"sound of {length} frames", sound, weights, row) for row in padded.split(1)]
        return torch.cat(rows)[:, : frames * self.samples_per_frame].to(weights.codebooks[0].dtype)

    def _advance(self, state: CodecState, latents: Tensor, final: bool) -> Tensor:
        weights = self._weights
        x = stream_conv(self._ops, latents.transpose(1, 2).contiguous(), weights.conv_in, state.conv_in, final)
        x = self._lstm(x, state.lstm)
        at_once = self._ops.frames_at_once
        parts = [x] if at_once is None else x.split(max(1, at_once // max(1, len(x))), dim=1)
        waveforms = [self._upsample(state, part, final and i == len(parts) - 1) for i, part in enumerate(parts)]
        return torch.cat(waveforms, dim=1).to(weights.codebooks[0].dtype)

    def _upsample(self, state: CodecState, x: Tensor, final: bool) -> Tensor:
        """Next samples [B, S] float32 of the LSTM's outputs x [B, T, C]."""
        ops, weights = self._ops, self._weights
        for upsampling, (conv_state, block_states) in zip(weights.upsampling, state.upsampling, strict=True):
            x = stream_conv_transpose(ops, x, upsampling.conv, conv_state, final)
            for block, block_state in zip(upsampling.blocks, block_states, strict=True):
                x = stream_residual(ops, x, block, block_state, final)
        return stream_conv(ops, x, weights.conv_out, state.conv_out, final, elu=True)[..., 0]


def _after(ends: Tensor, start: int, count: int) -> Tensor:
    """[B, count] bool: which of the positions from `start` on are at or after each row's end."""
    return torch.arange(start, start + count, dtype=torch.int64, device=ends.device) >= ends[:, None]
