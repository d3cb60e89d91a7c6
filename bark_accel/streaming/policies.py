"""Streaming policies: how long to wait for later coarse frames before a frame's codes are decoded.

The fine stage is not causal: what Transformers predicts for a frame depends on the frames after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from bark_accel.decoding.rng import default_generator, fork
from bark_accel.stages.fine import FineStage, FineState, coarse_codes, row_histories
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FineSpec

from .plan import StreamPlan, StreamSpeed


class Policy(Protocol):
    """Takes coarse frames in, gives finished codes out; every frame once, in order."""

    def push(self, frame: Sequence[Tensor]) -> None:
        """Add the next frame: a coarse token [B] of each coarse codebook."""

    def plan(self, row_frames: Sequence[int]) -> None:
        """Learn how long each row is: once, at the latest when the last frame is there."""

    def ready(self) -> bool:
        """Tell whether `take` has work to do."""

    def take(self) -> Tensor | None:
        """Do the next work, at most a pass of the fine stage: the codes [B, K, T] that it completes, or None."""


@dataclass
class Hops:
    """Frames of the next chunk: after each, `growth` times as many, up to `largest`."""

    frames: int
    growth: float
    largest: int

    def advance(self) -> None:
        self.frames = int(min(self.largest, self.frames * self.growth))


class PlannedHops(Hops):
    """Frames of the next chunk, as a plan has them; after the last one, that again."""

    def __init__(self, plan: StreamPlan):
        self._lengths = iter(plan.chunk_frames)
        super().__init__(next(self._lengths), 1.0, max(plan.chunk_frames))

    def advance(self) -> None:
        self.frames = next(self._lengths, self.frames)


class _Hopping:
    """Gives out a chunk as soon as a hop and `lookahead_frames` more are there.

    What is left at the end joins the last chunk where it is no more than the lookahead.
    """

    def __init__(self, hops: Hops, lookahead_frames: int):
        self._hops = hops
        self._lookahead_frames = lookahead_frames
        self._pending: list[Sequence[Tensor]] = []
        self._total_frames: int | None = None
        self._emitted_frames = 0

    def push(self, frame: Sequence[Tensor]) -> None:
        self._pending.append(frame)

    def plan(self, row_frames: Sequence[int]) -> None:
        self._total_frames = max(row_frames)

    def ready(self) -> bool:
        return self._due() > 0

    def take(self) -> Tensor | None:
        frames = self._due()
        codes = self._complete(frames) if frames else None
        if codes is None:
            return None
        del self._pending[:frames]
        self._emitted_frames += frames
        self._hops.advance()
        return codes

    def _due(self) -> int:
        hop, seen = self._hops.frames, self._hops.frames + self._lookahead_frames
        if self._total_frames is not None:
            remaining = self._total_frames - self._emitted_frames
            if remaining <= seen:
                return remaining if len(self._pending) == remaining else 0
        return hop if len(self._pending) >= seen else 0

    def _tokens(self, frames: int) -> Tensor:
        """The coarse tokens [B, num_coarse_codebooks * T] of the next frames and of the lookahead, if it is there."""
        return _joined(self._pending[: frames + self._lookahead_frames])

    def _complete(self, frames: int) -> Tensor | None:
        """Work on the next frames: their codes [B, K, frames], or None where there is more to do."""
        raise NotImplementedError


def _joined(frames: Sequence[Sequence[Tensor]]) -> Tensor:
    """Coarse tokens [B, num_coarse_codebooks * T] of T frames: one operation for all, not one for each."""
    return torch.stack([tokens for frame in frames for tokens in frame], dim=1)


class Preview(_Hopping):
    """The coarse codebooks alone, no fine pass: EnCodec at 1.5 kbps (for Bark's two of them)."""

    def __init__(self, spec: FineSpec, hops: Hops):
        super().__init__(hops, lookahead_frames=0)
        self._spec = spec

    def _complete(self, frames: int) -> Tensor:
        return coarse_codes(self._spec, self._tokens(frames)).transpose(1, 2)


class LowLatency(_Hopping):
    """Transformers' own fine pass on [codes given out | new frames | padding], the last `lookahead_frames` dropped.

    Six passes for every hop, over a full window whatever its length unless windows fit. One hop over the whole
    utterance is exactly what Transformers does, drawn from the generation's own generator; otherwise codes are drawn
    from `generator`, and see no more than `history_frames` before theirs (None: as many as in Transformers).
    """

    def __init__(
        self,
        fine: FineStage,
        hops: Hops,
        lookahead_frames: int,
        histories: Sequence[Tensor | None],
        sampling: FineSampling,
        generator: Generator,
        history_frames: int | None = None,
    ):
        super().__init__(hops, lookahead_frames)
        self._history_frames = history_frames
        self._fine = fine
        self._histories = histories
        self._sampling = sampling
        self._generator = generator
        self._state: FineState | None = None
        self._seen: Sequence[Tensor | None] = histories

    def _complete(self, frames: int) -> Tensor | None:
        if self._state is None:
            whole = self._emitted_frames == 0 and frames == self._total_frames
            self._sampling.generator = None if whole else self._generator
            self._seen = self._histories if whole else [self._recent(history) for history in self._histories]
            self._state = self._fine.begin(self._tokens(frames), self._seen, self._sampling)
        self._fine.advance(self._state)
        if self._fine.ready(self._state):
            return None
        codes, self._state = self._state.result(end=frames), None
        past = row_histories(self._fine.spec, self._seen, codes.shape[0], codes.device)
        self._histories = [torch.cat(row, 1) for row in zip(past, codes, strict=True)]
        return codes

    def _recent(self, history: Tensor | None) -> Tensor | None:
        """The end of a history, as far as a chunk may see it."""
        longest = self._fine.spec.max_history_frames if self._history_frames is None else self._history_frames
        return None if history is None else history[:, max(0, history.shape[1] - longest) :]


class Exact:
    """Transformers' own windows, each as soon as it can be computed: a frame waits until no later window writes it.

    `upcoming_generator` gives, for the number of frames in all, a generator in the state that the generation's own will
    have when all coarse frames are drawn. None: windows wait for that moment.
    """

    def __init__(
        self,
        fine: FineStage,
        spec: FineSpec,
        histories: Sequence[Tensor | None],
        sampling: FineSampling,
        upcoming_generator: Callable[[int], Generator] | None,
    ):
        self._fine = fine
        self._spec = spec
        self._histories = histories
        self._sampling = sampling
        self._upcoming_generator = upcoming_generator
        self._pending: list[Sequence[Tensor]] = []
        self._row_frames: Sequence[int] = ()
        self._total_frames: int | None = None
        self._state: FineState | None = None
        self._emitted_frames = 0

    def push(self, frame: Sequence[Tensor]) -> None:
        self._pending.append(frame)

    def plan(self, row_frames: Sequence[int]) -> None:
        self._row_frames, total_frames = row_frames, max(row_frames)
        self._total_frames = total_frames
        longest = max(0 if h is None else h.shape[-1] for h in self._histories)
        past = min(longest, self._spec.max_history_frames)
        several_windows = past + total_frames > self._spec.max_input_frames
        if several_windows and self._upcoming_generator is not None:
            self._sampling.generator = self._upcoming_generator(total_frames)

    def ready(self) -> bool:
        total, known = self._total_frames, self._known_frames()
        if total is None or known == 0 or self._emitted_frames == total:
            return False
        early = self._sampling.generator is not None
        return (early or known == total) and self._fine.ready(self._begun_state(), len(self._pending))

    def take(self) -> Tensor | None:
        if not self.ready():
            return None
        state = self._begun_state()
        if self._pending:
            self._fine.push(state, coarse_codes(self._spec, _joined(self._pending)))
            self._pending = []
        self._fine.advance(state)
        return self._settled(state) if self._gives_out(state.settled_frames) else None

    def _gives_out(self, settled_frames: int) -> bool:
        """Tell whether these frames are enough for a chunk."""
        return settled_frames > self._emitted_frames

    def _settled(self, state: FineState) -> Tensor:
        codes = state.result(self._emitted_frames, state.settled_frames)
        self._emitted_frames = state.settled_frames
        if self._sampling.generator is not None and self._emitted_frames == self._total_frames:
            self._leave_as_transformers_does(codes.device)
        return codes

    def _known_frames(self) -> int:
        return len(self._pending) + (0 if self._state is None else self._state.known_frames)

    def _begun_state(self) -> FineState:
        if self._state is None:
            self._state = self._fine.start(self._row_frames, self._histories, self._sampling)
        return self._state

    def _leave_as_transformers_does(self, device: torch.device) -> None:
        generator = self._sampling.generator
        if generator is not None:
            (self._sampling.source or default_generator(device)).set_state(generator.get_state())


class Whole(Exact):
    """Transformers' own windows, and all codes at once."""

    def __init__(self, fine: FineStage, sampling: FineSampling, histories: Sequence[Tensor | None]):
        super().__init__(fine, fine.spec, histories, sampling, None)

    def _gives_out(self, settled_frames: int) -> bool:
        return settled_frames == self._total_frames


class Chunking(Protocol):
    """Settings by which a waveform is cut; see `AudioStreamer`."""

    policy: str
    first_chunk_frames: int
    max_chunk_frames: int
    lookahead_frames: int
    start: str
    plan: StreamPlan | None
    speed: StreamSpeed | None


def make_policy(
    chunking: Chunking,
    spec: FineSpec,
    device: torch.device,
    histories: Sequence[Tensor | None],
    fine: Callable[[], tuple[FineStage, FineSampling]],
    upcoming_generator: Callable[[int], Generator] | None,
) -> Policy:
    """Make the policy of one generation.

    `fine` gives the fine stage where one is needed; for `histories` and `upcoming_generator` see the policies.
    """
    plan, growth = chunking.plan, hop_growth(chunking.policy, device)
    hops = Hops(chunking.first_chunk_frames, growth, chunking.max_chunk_frames)
    if chunking.policy == "preview":
        return Preview(spec, hops)
    stage, sampling = fine()
    if chunking.policy == "exact":
        return Exact(stage, spec, histories, sampling, upcoming_generator)
    generator = fork(device, "fine", sampling.source)
    if plan is None:
        return LowLatency(stage, hops, chunking.lookahead_frames, histories, sampling, generator)
    planned = PlannedHops(plan)
    return LowLatency(stage, planned, plan.lookahead_frames, histories, sampling, generator, plan.history_frames)


def hop_growth(policy: str, device: torch.device) -> float:
    """Return the factor by which each hop is longer than the one before.

    A preview's chunks cost by the frame, so they stay short. Every low-latency hop costs six passes over a full window:
    an accelerator computes these in less time than even a short hop plays, a CPU only in that of the longest.
    """
    if policy == "preview":
        return 1.0
    return math.inf if device.type == "cpu" else 2.0
