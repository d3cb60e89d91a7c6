"""The first codebooks -> all codebooks, six bidirectional passes a window."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.decoding.sampling import SampleRules, TokenRange, drawing
from bark_accel.ops.backend import Ops
from bark_accel.transformer.bidirectional import bidirectional_forward, compiled_bidirectional_forward
from bark_accel.transformer.dynamo import Compiler
from bark_accel.transformer.layers import linear, output_rows
from bark_accel.transformer.spec import TransformerSpec
from bark_accel.transformer.weights import TransformerWeights

from .fine_graphs import WindowGraphs
from .fine_sampling import FineSampling, fine_config
from .spec import ENDED, FineSpec


@dataclass
class FineGroup:
    """Rows of one length, behind histories of one length.

    `codes` [n, T, K] holds the history, then `frames` frames, then padding. `windows`: (first frame, first frame
    written) of those to come; each has `window_frames`.
    """

    rows: list[int]
    codes: Tensor
    history_frames: int
    frames: int
    window_frames: int
    windows: list[tuple[int, int]]


@dataclass
class FineState:
    """One batch of utterances of known length.

    Of the `frames` frames that the longest row has, `known_frames` have their coarse codes. `passes` are those left of
    the windows that have begun.
    """

    groups: list[FineGroup]
    sampling: FineSampling
    known_frames: int = 0
    passes: Iterator[None] | None = None

    @property
    def frames(self) -> int:
        return max(group.frames for group in self.groups)

    @property
    def settled_frames(self) -> int:
        """Frames that are final in every row."""
        unsettled = (g.windows[0][1] - g.history_frames for g in self.groups if g.windows)
        return max(0, min(unsettled, default=self.frames))

    def result(self, start: int = 0, end: int | None = None) -> Tensor:
        """Codes [B, num_codebooks, end - start] of the utterances' frames, 0 after a row's end."""
        end = self.frames if end is None else end
        batch_size = sum(len(group.rows) for group in self.groups)
        result = self.groups[0].codes.new_zeros(batch_size, self.groups[0].codes.shape[2], end - start)
        for group in self.groups:
            count = min(end, group.frames) - start
            if count > 0:
                first = group.history_frames + start
                result[group.rows, :, :count] = group.codes[:, first : first + count].transpose(1, 2)
        return result


class FineStage:
    """The windows of `BarkFineModel.generate`."""

    def __init__(
        self,
        weights: TransformerWeights,
        transformer: TransformerSpec,
        spec: FineSpec,
        ops: Ops,
        compiler: Compiler | None = None,
        graphs: WindowGraphs | None = None,
    ):
        self._weights = weights
        self._transformer = transformer
        self._spec = spec
        self._ops = ops
        self._compiler = compiler
        self._graphs = graphs

    @property
    def spec(self) -> FineSpec:
        return self._spec

    def run(
        self,
        coarse_tokens: Tensor,
        histories: Sequence[Tensor | None],
        sampling: FineSampling,
        after_pass: Callable[[int, int], None] = lambda done, passes: None,
    ) -> Tensor:
        """Fill in the remaining codebooks.

        Parameters
        ----------
        coarse_tokens : Tensor [B, num_coarse_codebooks * T] int64
            As the coarse stage returns them.
        histories : sequence of Tensor [num_codebooks, T'] int or None
            What was said before: `fine_prompt` of voice presets, or earlier codes; B of them, or one that all rows
            have.
        after_pass : callable
            Called after each pass over windows, with the number of those that are done and of all.

        Returns
        -------
        Tensor [B, num_codebooks, T] int64
            0 after a row's end.
        """
        state = self.begin(coarse_tokens, histories, sampling)
        passes = self._passes_to_come(state)
        for done in itertools.count(1):
            if not self.ready(state):
                break
            self.advance(state)
            # More than expected where a window could not be captured.
            after_pass(min(done, passes), passes)
        return state.result(end=coarse_tokens.shape[1] // self._spec.num_coarse_codebooks)

    def begin(self, coarse_tokens: Tensor, histories: Sequence[Tensor | None], sampling: FineSampling) -> FineState:
        """Begin what `run` does; `advance` it while it is ready."""
        state = self.start(row_frames(self._spec, coarse_tokens), histories, sampling)
        self.push(state, coarse_codes(self._spec, coarse_tokens))
        return state

    def start(self, frames: Sequence[int], histories: Sequence[Tensor | None], sampling: FineSampling) -> FineState:
        """Begin an utterance of `frames` frames in all for each row; `histories` as in `run`."""
        groups: dict[tuple[int, int], list[int]] = {}
        pasts = row_histories(self._spec, histories, len(frames), self._weights.device)
        for row, length in enumerate(frames):
            groups.setdefault((length, pasts[row].shape[1]), []).append(row)
        return FineState(
            [self._group(rows, key[0], torch.stack([pasts[r] for r in rows])) for key, rows in groups.items()],
            sampling,
        )

    def _group(self, rows: list[int], frames: int, past: Tensor) -> FineGroup:
        """Make the group of `rows` that follow histories [n, num_codebooks, T]."""
        history_frames = past.shape[2]
        # The model is not causal: short inputs are padded to the window, and the padding is predicted too.
        window_frames = self._spec.window_frames(history_frames + frames)
        padded_frames = max(window_frames, history_frames + frames)
        codes = F.pad(past.transpose(1, 2), (0, 0, 0, padded_frames - history_frames), value=self._spec.codebook_size)
        windows = self._windows(frames, history_frames, padded_frames) if frames else []
        return FineGroup(rows, codes, history_frames, frames, window_frames, windows)

    def push(self, state: FineState, codes: Tensor) -> None:
        """Add coarse codes [B, T, num_coarse_codebooks] of the next frames; those after a row's end are dropped."""
        for group in state.groups:
            count = min(codes.shape[1], group.frames - state.known_frames)
            if count > 0:
                begin = group.history_frames + state.known_frames
                group.codes[:, begin : begin + count, : codes.shape[2]] = codes[group.rows, :count]
        state.known_frames += codes.shape[1]

    def ready(self, state: FineState, more_frames: int = 0) -> bool:
        """Tell whether the next window of every row that has one has all frames it reads, with those to be pushed."""
        waiting = [group for group in state.groups if group.windows]
        ends = (min(g.windows[0][0] + self._spec.max_input_frames - g.history_frames, g.frames) for g in waiting)
        return bool(waiting) and state.known_frames + more_frames >= max(ends)

    def advance(self, state: FineState) -> None:
        """Compute a pass of the next window of every row that has one, or all where they are one CUDA graph.

        With the last of its passes a window ends; frames that no later window writes are settled then.
        """
        passes, state.passes = state.passes or self._passes(state), None
        for _ in passes:
            state.passes = passes
            return

    def step(self, state: FineState) -> None:
        """Predict the next window of every row that has one."""
        self.advance(state)
        while state.passes is not None:
            self.advance(state)

    def _passes_to_come(self, state: FineState) -> int:
        """Calls of `advance` for the windows that have not begun; those of one shape are computed side by side."""
        count = 0
        for turn in range(max((len(group.windows) for group in state.groups), default=0)):
            rows: Counter[tuple[int, int]] = Counter()
            for group in (group for group in state.groups if turn < len(group.windows)):
                start, fill_start = group.windows[turn]
                rows[fill_start - start, group.window_frames] += len(group.rows)
            count += sum(self._calls(number, state.sampling) for number in rows.values())
        return count

    def _calls(self, rows: int, sampling: FineSampling) -> int:
        """Calls of `advance` for windows of one shape."""
        return 1 if self._captures(rows, sampling) else self._spec.num_codebooks - self._spec.num_coarse_codebooks

    def _captures(self, rows: int, sampling: FineSampling) -> bool:
        return self._graphs is not None and self._graphs.take(self._weights.device, rows, sampling)

    def _passes(self, state: FineState) -> Iterator[None]:
        """Predict the next window of every row that has one; yields between passes."""
        batches: dict[tuple[int, int], list[Tensor]] = {}
        ends: dict[tuple[int, int], int] = {}
        begun = [group for group in state.groups if group.windows]
        for group in begun:
            start, fill_start = group.windows[0]
            window = group.codes[:, start : start + group.window_frames]
            shape = fill_start - start, group.window_frames
            end = min(group.window_frames, group.history_frames + group.frames - start)
            batches.setdefault(shape, []).append(window)
            ends[shape] = max(ends.get(shape, 0), end)
        for index, (shape, windows) in enumerate(batches.items()):
            if index > 0:
                yield
            joined = windows[0] if len(windows) == 1 else torch.cat(windows)
            yield from self._fill(joined, slice(shape[0], ends[shape]), state.sampling)
            if len(windows) > 1:
                for window, filled in zip(windows, joined.split([w.shape[0] for w in windows]), strict=True):
                    window.copy_(filled)
        for group in begun:
            del group.windows[0]

    def _windows(self, frames: int, history_frames: int, total_frames: int) -> list[tuple[int, int]]:
        """(first frame of the window, first frame it writes) of each window."""
        spec = self._spec
        if total_frames < spec.max_input_frames:
            return [(0, history_frames)]
        hop = spec.max_history_frames
        count = max(0, math.ceil((frames - (spec.max_input_frames - history_frames)) / hop)) + 1
        last = total_frames - spec.max_input_frames
        return [(min(i * hop, last), min(history_frames + i * hop, total_frames - hop)) for i in range(count)]

    def _fill(self, window: Tensor, rows: slice, sampling: FineSampling) -> Iterator[None]:
        """Predict codebook after codebook of `window` [B, T, K] in place, from frame `rows.start` on.

        Of the last codebook, which no other pass reads, only `rows`. Yields between passes.
        """
        spec, weights = self._spec, self._weights
        if self._captures(window.shape[0], sampling) and self._replayed(window, rows.start, sampling):
            return
        for codebook in range(spec.num_coarse_codebooks, spec.num_codebooks):
            if codebook > spec.num_coarse_codebooks:
                yield
            if sampling.before_pass is not None:
                sampling.before_pass()
            predicted = rows if codebook == spec.num_codebooks - 1 else slice(rows.start, window.shape[1])
            logits = self._scores(weights, window, codebook, predicted)
            # Every frame of a whole window draws, also those that nobody reads: the generator ends where it did.
            padded = F.pad(logits, (0, 0, 0, spec.max_input_frames - predicted.stop))
            with drawing("fine", weights.cache_dtype):
                drawn = self._draw(padded.flatten(0, 1), sampling).view(window.shape[0], -1)
            window[:, predicted, codebook] = drawn[:, : logits.shape[1]]

    def _replayed(self, window: Tensor, first: int, sampling: FineSampling) -> bool:
        """Fill the window by a graph; False, and nothing has happened, where there can be none."""
        assert self._graphs is not None
        if sampling.before_pass is not None:
            sampling.before_pass()

        def scores(weights: TransformerWeights, codes: Tensor, codebook: int) -> Tensor:
            return self._scores(weights, codes, codebook, slice(0, codes.shape[1]))

        with drawing("fine", self._weights.cache_dtype):
            return self._graphs.fill(self._weights, self._spec, self._ops, scores, window, first, sampling)

    def _scores(self, weights: TransformerWeights, codes: Tensor, codebook: int, rows: slice) -> Tensor:
        """Scores [B, n, codebook_size] float32 of a codebook's codes in the frames `rows` of codes [B, T, K]."""
        codebooks_without_head = len(weights.token_tables) - len(weights.heads)
        hidden = self._ops.codebook_embedding_sum(codes, weights.token_tables[: codebook + 1], weights.positions)
        hidden = self._forward(weights, hidden, rows)
        head = output_rows(weights.heads[codebook - codebooks_without_head], 0, self._spec.codebook_size)
        return linear(hidden, head, self._ops).float()

    def _forward(self, weights: TransformerWeights, hidden: Tensor, rows: slice) -> Tensor:
        place = (rows.start, rows.stop)
        if self._compiler is None:
            return bidirectional_forward(weights, self._transformer, hidden, self._ops, *place)
        return compiled_bidirectional_forward(weights, self._transformer, hidden, self._compiler, *place)

    def _draw(self, logits: Tensor, sampling: FineSampling) -> Tensor:
        if sampling.draw is not None:
            return sampling.draw(logits)
        ids, config = logits.shape[1], fine_config(sampling.temperature)
        # The op, which divides what is masked too, takes neither.
        if config.temperature < 0 or math.isinf(config.temperature):
            logits, config = logits / config.temperature, replace(config, temperature=1.0)
        rules = SampleRules.of([(config, TokenRange(0, ids))], logits.device).arguments
        if not config.do_sample:
            return self._ops.fused_sample(logits, None, *rules)
        return self._ops.fused_multinomial(logits, sampling.generator or sampling.source, ids, *rules)


def coarse_codes(spec: FineSpec, tokens: Tensor) -> Tensor:
    """Codes [B, T, num_coarse_codebooks] in 0..codebook_size - 1 of coarse tokens [B, num_coarse_codebooks * T]."""
    frames = tokens.reshape(tokens.shape[0], -1, spec.num_coarse_codebooks)
    return torch.remainder(frames - spec.semantic_vocab_size, spec.codebook_size)


def row_frames(spec: FineSpec, tokens: Tensor) -> list[int]:
    """Frames of each row of coarse tokens [B, num_coarse_codebooks * T]: all T, or those up to the row's end."""
    if not spec.rows_end:
        return [tokens.shape[1] // spec.num_coarse_codebooks] * tokens.shape[0]
    return ((tokens != ENDED).sum(1) // spec.num_coarse_codebooks).tolist()


def row_histories(spec: FineSpec, histories: Sequence[Tensor | None], rows: int, device: torch.device) -> list[Tensor]:
    """Cut each row's history to what the windows use: `rows` tensors [num_codebooks, T] int64.

    One history is that of all rows.
    """
    none = torch.empty(spec.num_codebooks, 0, dtype=torch.int64, device=device)
    cut = [none if h is None else h.to(none)[:, -spec.max_history_frames :] for h in histories]
    return cut * rows if len(cut) == 1 else cut
