"""Makes sound of coarse tokens while they are generated: a policy, the fine stage and the codec."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bark_accel.stages.coarse import row_lengths
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.spec import CoarseSpec, SemanticSpec

from .policies import Policy
from .sound import Sound


class ChunkDecoder:
    """Coarse tokens, one step at a time -> waveform chunks.

    Parameters
    ----------
    emit : callable
        Called with each chunk: Tensor [B, S] float32 on the CPU, S > 0; rows are silent after their end.
    """

    def __init__(self, policy: Policy, codec: CodecStage, spec: CoarseSpec, emit: Callable[[Tensor], None]):
        self._policy = policy
        self._codec = codec
        self._spec = spec
        self._emit = emit
        self._sound = Sound(codec)
        self._heard = False
        self._frame: list[Tensor] = []
        self._codes: list[Tensor] = []
        self._seen_frames = 0
        self._total_frames: int | None = None
        self._row_frames: Tensor | None = None

    @property
    def row_lengths_samples(self) -> list[int] | None:
        """Samples of each row, once that is settled."""
        if self._row_frames is None or self._total_frames is None:
            return None
        return [frames * self._codec.samples_per_frame for frames in self._row_frames.tolist()]

    @property
    def codes(self) -> Tensor | None:
        """Codes decoded so far, [B, K, T] int64."""
        return torch.cat(self._codes, dim=2) if self._codes else None

    @property
    def frames(self) -> int:
        """Frames decoded so far."""
        return self._sound.frames

    @property
    def total_frames(self) -> int | None:
        """Frames of the longest row, once that is known."""
        return self._total_frames

    def set_semantic(self, semantic_tokens: Tensor, *, final: bool) -> None:
        """Learn how long each row is from the semantic tokens [B, T] so far."""
        self._row_frames = row_lengths(self._spec, semantic_tokens) // self._spec.num_codebooks
        if final:
            self._total_frames = int(self._row_frames.max())
            self._plan(self._total_frames)
            self._drain()

    def push(self, tokens: Tensor) -> None:
        """Add the next coarse token [B] of every row; may emit chunks."""
        self.feed(tokens)
        self._drain()

    def feed(self, tokens: Tensor) -> None:
        """Add the next coarse token [B] of every row, for `advance` to work on."""
        self._frame.append(tokens)
        if len(self._frame) == self._spec.num_codebooks:
            self._policy.push(self._frame)
            self._frame = []
            self._seen_frames += 1

    @property
    def ready(self) -> bool:
        """Tell whether `advance` has work to do."""
        return self._sound.ready or self._policy.ready()

    @property
    def done(self) -> bool:
        """Tell whether every frame was decoded."""
        return self._sound.frames == self._total_frames

    def advance(self) -> None:
        """Emit what is there, and do the work of a chunk, or a pass of the fine stage on the way to one."""
        self._emit_sound(wait=False)
        codes = self._policy.take() if self._policy.ready() else None
        if codes is not None:
            self._decode(codes, final=self._sound.frames + codes.shape[2] == self._total_frames)

    def end(self) -> None:
        """No more tokens will come, even if the semantic tokens ask for more (a stopping criterion cut them short)."""
        if self._row_frames is None or self._seen_frames == self._total_frames:
            return
        if self._frame:
            tokens, whole = self._seen_frames * self._spec.num_codebooks + len(self._frame), self._spec.num_codebooks
            raise ValueError(f"coarse stage: expected a multiple of {whole} tokens before it stops, got {tokens}")
        self._total_frames = self._seen_frames
        self._row_frames = self._row_frames.clamp(max=self._seen_frames)
        self._plan(self._seen_frames)
        self._drain()
        if self._sound.frames == self._seen_frames:
            self._decode(self._row_frames.new_empty(self._row_frames.shape[0], 1, 0), final=True)

    def _plan(self, total_frames: int) -> None:
        assert self._row_frames is not None
        rows = self._row_frames.tolist()
        self._policy.plan(rows if self._spec.rows_end else [total_frames] * len(rows))

    def _drain(self) -> None:
        while self.ready:
            self.advance()

    def _decode(self, codes: Tensor, *, final: bool) -> None:
        if codes.shape[2] > 0:
            self._codes.append(codes)
        several = self._row_frames is not None and self._row_frames.shape[0] > 1
        self._sound.push(codes, final=final, row_frames=self._row_frames if several else None)
        # Nothing is heard before the first chunk, and nothing is left to do beside the last one.
        self._emit_sound(wait=final or not self._heard)

    def _emit_sound(self, *, wait: bool) -> None:
        for waveform in self._sound.take(wait=wait):
            if waveform.shape[1] > 0:
                self._heard = True
                self._emit(waveform)


def repad(semantic: SemanticSpec, coarse: CoarseSpec, semantic_tokens: Tensor) -> Tensor:
    """Replace the semantic padding by the coarse stage's, as `BarkCoarseModel.generate` does."""
    padding = semantic_tokens == semantic.pad_token
    return semantic_tokens.to(torch.int64).masked_fill(padding, coarse.semantic_pad_token)
