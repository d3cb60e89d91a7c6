"""Plan of a stream's chunks: lengths for which each is ready before the one before it has been played."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from bark_accel._arguments import whole_number
from bark_accel.stages.coarse import prompts
from bark_accel.stages.spec import FIT_PADDING, CoarseSpec, FineSpec

STARTS = ("soonest", "smooth")
# Work is planned to take so many times as long as was measured.
_RESERVE = 1.15
# The share of the fine stage's longest history that a chunk sees.
_HISTORY_PART = 4
# Seconds that nobody hears, and that a machine does not keep.
_TICK_S = 5e-4
# Seconds of a part of a stream: sums of longer ones overflow.
_LONGEST_PART_S = 1e9


@dataclass(frozen=True)
class StreamSpeed:
    """Seconds that a machine needs for the parts of a stream, all rows together.

    `token_s`: a token of a causal stage; `prompt_token_s`: one of a prompt; `fine_frame_s`: a frame of a fine window,
    padding counted, in all passes; `codec_frame_s`: a frame of sound; `fine_window_s`: what any fine window takes
    beside its frames. `dataclasses.asdict` and `StreamSpeed(**values)` write and read it.

    Raises
    ------
    ValueError
        A number is below 0, or above 1e9.
    """

    token_s: float
    prompt_token_s: float
    fine_frame_s: float
    codec_frame_s: float
    fine_window_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 <= value <= _LONGEST_PART_S):
                raise ValueError(f"{name}: expected seconds >= 0, at most {_LONGEST_PART_S:g}, got {value!r}")


@dataclass(frozen=True)
class StreamPlan:
    """Lengths in frames that decide what the fine stage sees of a low-latency stream.

    `chunk_frames`: of each chunk, the last one of all that follow; `lookahead_frames`: seen beyond a chunk;
    `history_frames`: seen before it. `ready_s`: seconds after the semantic tokens (interleaved: after their
    prompt) at which each chunk is expected, and `silence_s`: of silence after the first sound, both empty in a plan
    that was not made from a speed. `dataclasses.asdict` and `StreamPlan(**values)` write and read it.

    Raises
    ------
    ValueError
        A length is not a whole number, or there are no chunks.
    """

    chunk_frames: tuple[int, ...]
    lookahead_frames: int
    history_frames: int
    ready_s: tuple[float, ...] = ()
    silence_s: float | None = None

    def __post_init__(self) -> None:
        chunks = tuple(whole_number("chunk_frames", frames, 1) for frames in self.chunk_frames)
        if not chunks:
            raise ValueError("chunk_frames: expected at least one chunk, got none")
        numbers: dict[str, Any] = {
            "chunk_frames": chunks,
            "lookahead_frames": whole_number("lookahead_frames", self.lookahead_frames, 0),
            "history_frames": whole_number("history_frames", self.history_frames, 0),
            "ready_s": tuple(map(float, self.ready_s)),
        }
        for name, value in numbers.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Utterance:
    """The longest that a generation may become, as its stages have it.

    `semantic_history` and `coarse_history` are tokens, `fine_history` frames, of a voice preset; `frames` are to be
    generated; `interleaved`: their semantic tokens as well.
    """

    coarse: CoarseSpec
    fine: FineSpec
    frames: int
    semantic_history: int = 0
    coarse_history: int = 0
    fine_history: int = 0
    interleaved: bool = False


@lru_cache(maxsize=64)
def plan_stream(
    speed: StreamSpeed, utterance: Utterance, *, start: str, first: int, longest: int, lookahead: int
) -> StreamPlan:
    """Plan chunks of at least `first` frames, at most `longest`, so that the least silence follows the first sound.

    That is none where there is such a plan: of several the one with the least to do, so with longer chunks, of which
    the fine stage sees more. Otherwise the least in the mean over all lengths that the speech may have in the end. The
    first chunk has `first` frames, or fills the window that these need, unless that takes another coarse prompt; with
    `start` "smooth" it is as long as it has to be for no silence at all, the whole utterance if need be.
    """
    work = _Work(speed, utterance, lookahead)
    firsts = work.lengths(0, first, utterance.fine.max_input_frames)
    if start == "smooth":
        firsts = [*firsts, max(first, utterance.frames)]
    else:
        needed = _prompts_before(utterance, first + lookahead)
        firsts = [frames for frames in firsts[:2] if _prompts_before(utterance, frames + lookahead) == needed]
    for frames in firsts:
        if last := work.last_chunk(frames, first, longest, late_s=0.0):
            return work.plan(last)
    found = (work.last_chunk(frames, first, longest, late_s=math.inf) for frames in firsts)
    return work.plan(min((last for last in found if last is not None), key=_mean_silence))


class _Chunk(NamedTuple):
    """A chunk of a plan, and those before it.

    When it is ready; how late the latest of them was; the sum, over their frames, of the silence before each.
    """

    ready_s: float
    late_s: float
    silent_frames_s: float
    frames: int
    before: _Chunk | None

    def is_as_good_as(self, other: _Chunk) -> bool:
        """Tell whether it is nowhere worse, but for what nobody hears."""
        return (
            self.ready_s <= other.ready_s + _TICK_S
            and self.late_s <= other.late_s + _TICK_S
            and self.silent_frames_s <= other.silent_frames_s + _TICK_S * other.frames
        )


def _mean_silence(last: _Chunk) -> tuple[int, float]:
    """A key by which the last chunks of plans are ordered: in ticks, then by what there is to do."""
    return round(last.silent_frames_s / _TICK_S), last.ready_s


class _Work:
    """Costs of the chunks of an utterance, in seconds, with a reserve."""

    def __init__(self, speed: StreamSpeed, utterance: Utterance, lookahead: int):
        self._utterance, self._lookahead = utterance, lookahead
        self._fine, self._frames = utterance.fine, utterance.frames
        self._history = self._fine.max_history_frames // _HISTORY_PART
        self._fine_frame_s = _RESERVE * speed.fine_frame_s
        self._fine_window_s = _RESERVE * speed.fine_window_s
        self._codec_frame_s = _RESERVE * speed.codec_frame_s
        self._drawn_s = [_RESERVE * seconds for seconds in _drawn_s(speed, utterance)]

    def plan(self, last: _Chunk) -> StreamPlan:
        """The plan that ends with a chunk."""
        chunks, chunk = [last], last
        while chunk.before is not None:
            chunk = chunk.before
            chunks.append(chunk)
        frames, ready = zip(*((chunk.frames, round(chunk.ready_s, 3)) for chunk in reversed(chunks)), strict=True)
        return StreamPlan(frames, self._lookahead, self._history, ready, round(last.late_s, 3))

    def last_chunk(self, first: int, shortest: int, longest: int, late_s: float) -> _Chunk | None:
        """Search all sequences of chunks that are at most `late_s` late, by the frames that they end at.

        Of two that end at the same frame, one is dropped if the other is nowhere worse.
        """
        rate, first_s = self._utterance.coarse.rate_hz, self._chunk_s(0, first)
        found = {min(first, self._frames): [_Chunk(first_s, 0.0, 0.0, first, None)]}
        while found:
            done = min(found)
            chunks = found.pop(done)
            if done == self._frames:
                return min(chunks, key=_mean_silence)
            for frames in self.lengths(done, shortest, longest):
                chunk_s, end = self._chunk_s(done, frames), min(self._frames, done + frames)
                for before in chunks:
                    ready_s = before.ready_s + chunk_s
                    late = max(before.late_s, ready_s - first_s - done / rate)
                    if late <= late_s + _TICK_S:
                        silent = before.silent_frames_s + late * (end - done)
                        _keep(found.setdefault(end, []), _Chunk(ready_s, late, silent, frames, before))
        return None

    def lengths(self, done: int, shortest: int, longest: int) -> list[int]:
        """The shortest chunk after `done` frames, and those up to the longest that leave no room in their window."""
        taken = self._seen_before(done) + self._lookahead + FIT_PADDING
        ends = range(0, self._fine.max_input_frames + 1, self._fine.window_multiple)
        return sorted({shortest, *(end - taken for end in ends if shortest <= end - taken <= longest)})

    def _seen_before(self, done: int) -> int:
        return min(self._history, self._utterance.fine_history + done)

    def _chunk_s(self, done: int, frames: int) -> float:
        """Seconds of work between `done` frames of sound and `frames` more."""
        seen = min(self._frames, done + frames + self._lookahead)
        drawn = min(self._frames, done + self._lookahead) if done else 0
        window = self._seen_before(done) + seen - done
        windows = 1 + max(0, math.ceil((window - self._fine.max_input_frames) / self._fine.max_history_frames))
        fine_s = windows * (self._fine_window_s + self._fine.window_frames(window) * self._fine_frame_s)
        return self._drawn_s[seen] - self._drawn_s[drawn] + fine_s + frames * self._codec_frame_s


def _keep(chunks: list[_Chunk], new: _Chunk) -> None:
    """Add a chunk unless another is as good, and drop those that it is better than."""
    if not any(old.is_as_good_as(new) for old in chunks):
        chunks[:] = [old for old in chunks if not new.is_as_good_as(old)]
        chunks.append(new)


def _prompts_before(utterance: Utterance, frames: int) -> int:
    """Coarse prompts that the model is fed anew for so many frames."""
    spec, drawn, count = utterance.coarse, 0, 0
    for window, fed in prompts(spec, utterance.semantic_history, utterance.coarse_history):
        if drawn >= frames * spec.num_codebooks:
            break
        drawn, count = drawn + window, count + (fed > 1)
    return count


def _drawn_s(speed: StreamSpeed, utterance: Utterance) -> Sequence[float]:
    """Seconds until the coarse tokens of 0, 1, 2, ... frames are drawn."""
    spec, history = utterance.coarse, utterance.semantic_history
    semantic = math.ceil(utterance.frames * spec.num_codebooks / spec.tokens_per_semantic)
    seconds, tokens_s, known = 0.0, [0.0], 0
    for window, fed in prompts(spec, history, utterance.coarse_history):
        if utterance.interleaved:
            # A window opens when its prompt's semantic tokens are there.
            end = spec.semantic_start(history, len(tokens_s) - 1) + spec.max_input_tokens - history
            seconds += max(0, min(end, semantic) - known) * speed.token_s
            known = max(known, min(end, semantic))
        seconds += fed * speed.prompt_token_s
        for _ in range(window):
            seconds += speed.token_s
            tokens_s.append(seconds)
        if len(tokens_s) > utterance.frames * spec.num_codebooks:
            return tokens_s[:: spec.num_codebooks]
    raise AssertionError("prompts do not end")
