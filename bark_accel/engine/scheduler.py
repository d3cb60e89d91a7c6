"""Order of work: which request is fed, stepped or decoded next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bark_accel.decoding.shared_draws import Scores, SharedDraws
from bark_accel.transformer.causal import CausalModel

from .row import Row
from .slots import Slots, take_together

# Tokens of prompts that are fed in a turn, on the average: a longer prompt is paid for by the turns after it.
_PROMPT_TOKENS = 512
# The same beside somebody who runs dry.
_PROMPT_TOKENS_BESIDE = 128
# The same for who hears nothing yet, beside a stream that plays and is nearly over: about as long as their steps take.
_NEWCOMERS_TOKENS = 32
# Seconds of audio: who has less left to hear, runs dry.
_RUNS_DRY_S = 5.0
_NEARLY_OVER_S = 2.0


class Scheduler:
    """Runs rows turn by turn. Each gets what it would get alone, and only its own errors.

    Parameters
    ----------
    models : sequence of CausalModel
        Each makes one shared step a turn.
    """

    def __init__(self, models: Sequence[CausalModel], slots: Slots):
        self._models = models
        self._draws = {id(model): SharedDraws(model.spec.output_vocab_size, model.ops) for model in models}
        self._slots = slots
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._unpaid_tokens = 0
        self._newcomers_wait_until = 0.0

    @property
    def busy(self) -> bool:
        """Tell whether any row is left."""
        return bool(self._rows or self._waiting)

    def add(self, row: Row) -> None:
        """Let a row wait for a slot."""
        self._waiting.append(row)

    def turn(self) -> None:
        """Do a little for everybody."""
        self._drop_ended()
        self._admit()
        self._feed_prompts()
        for model in self._models[:1] if self._gathers else self._models:
            self._feed_tokens(model)
        self._decode()
        self._finish()

    def _drop_ended(self) -> None:
        """Let those go who were cancelled, or are late."""
        for row in (*self._rows, *self._waiting):
            with self._guarding(row):
                row.request.check()

    def _admit(self) -> None:
        """Lend free slots: to who is between the stages, then to newcomers, who come first where rows gather."""
        while True:
            between = _by_urgency(row for row in self._rows if row.is_between)
            is_new = self._waiting and (not between or (self._gathers and len(between) < self._slots.count))
            if not (is_new or between) or (slot := self._slots.take()) is None:
                return
            row = self._waiting.popleft() if is_new else between[0]
            if is_new:
                self._rows.append(row)
            with self._guarding(row):
                row.start(slot)

    @property
    def _gathers(self) -> bool:
        """Tell whether the coarse stage waits, so that more rows share its steps: nobody listens before all is there.

        That is while as many rows are in the semantic stage, up to as many as there are slots between the two.
        """
        if any(row.request.is_stream for row in self._rows):
            return False
        models = [row.step.model for row in self._rows if row.step is not None]
        semantic, coarse = (models.count(model) for model in self._models)
        return semantic > 1 and semantic >= coarse

    def _feed_prompts(self) -> None:
        """Feed prompts, which rows do not share, those of the most urgent listeners first."""
        rows = _by_urgency(row for row in self._rows if row.step is not None and not row.step.feed.is_step)
        shares = self._prompt_shares(rows)
        self._unpaid_tokens = max(0, self._unpaid_tokens - shares[0])
        for row, share in zip(rows, shares, strict=False):
            step = row.step
            if self._unpaid_tokens >= share or step is None:
                return
            self._unpaid_tokens += step.feed.tokens.shape[1]
            with self._guarding(row):
                drawn = row.draw(step.alone())
                row.note(drawn, drawn.cpu() if row.is_read else drawn)

    def _prompt_shares(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of prompts that are fed in a turn, on the average, where each of these rows is the next.

        Where there is none, one share by which the turn pays for earlier prompts: that of a newcomer.
        """
        some_end = any(map(_is_nearly_over, self._rows))
        is_less_urgent = bool(rows) and self._is_less_urgent(rows[0])
        share = _PROMPT_TOKENS_BESIDE if is_less_urgent else _PROMPT_TOKENS
        plays = [row.request.plays for row in rows] or [False]
        return [_NEWCOMERS_TOKENS if some_end and not each else share for each in plays]

    def _feed_tokens(self, model: CausalModel) -> None:
        """Feed a token of every row that has one for this model; a few draft by themselves, and use up their drafts."""
        ready = [
            row for row in self._rows if row.step is not None and row.step.model is model and row.step.feed.is_step
        ]
        rows, steps = [], []
        for row in ready:
            step = row.step
            assert step is not None
            with self._guarding(row):
                if step.source is not None and (len(ready) <= _rows_that_draft(model) or step.source.ahead):
                    row.run_ahead()
                    continue
                model.check_room(step.cache.position, 1)
                rows.append(row)
                steps.append(step)
        if not rows:
            return
        with self._guarding(*rows):
            self._take_tokens(rows, [step.feed.rows for step in steps], take_together(steps), self._draws[id(model)])

    def _take_tokens(self, rows: Sequence[Row], ids: Sequence[slice], scores: Scores, draws: SharedDraws) -> None:
        """Draw a token for each row of one stage, and read them back from the device all at once, if at all."""
        going, drawn = [], []
        shared = draws.draw([row.next_draw for row in rows], scores)
        for place, (row, token) in enumerate(zip(rows, shared, strict=True)):
            if token is None:
                with self._guarding(row):
                    token = row.draw(scores.of(place, ids[place]))
            if token is not None:
                drawn.append(token)
                going.append(row)
        if not going:
            return
        tokens = read_back(drawn) if going[0].is_read else drawn
        for row, each, token in zip(going, drawn, tokens, strict=True):
            with self._guarding(row):
                row.note(each, token)

    def _decode(self) -> None:
        """Compute a pass over one fine window: on a CPU, several at once take longer for each.

        Beside a stream that plays and is nearly over, who hears nothing yet has a pass after as much time without one.
        """
        rows = _by_urgency(self._decoding())
        start, some_end = time.monotonic(), any(map(_is_nearly_over, self._rows))
        if some_end and start < self._newcomers_wait_until:
            rows = [row for row in rows if row.request.plays]
        for row in rows[:1]:
            if self._is_less_urgent(row):
                return
            is_new = not row.request.plays
            with self._guarding(row):
                row.decode()
            if some_end and is_new:
                end = time.monotonic()
                self._newcomers_wait_until = end + (end - start)

    def _decoding(self) -> list[Row]:
        """Rows that the fine stage or the codec has work for; to look may begin it, and fail."""
        rows = []
        for row in list(self._rows):
            with self._guarding(row):
                if row.decodes:
                    rows.append(row)
        return rows

    def _is_less_urgent(self, row: Row) -> bool:
        """Tell whether a listener who waits for tokens of one row runs dry, and before that of another row."""
        others = (each.request.due for each in self._rows if each.step is not None and each.step.feed.is_step)
        due = row.request.due
        return min(others, default=due) < min(due, time.monotonic() + _RUNS_DRY_S)

    def _finish(self) -> None:
        for row in [row for row in self._rows if row.done]:
            with self._guarding(row):
                row.finish()
                self._rows.remove(row)

    def _guarding(self, *rows: Row) -> _Guard:
        """Let an error end these rows alone."""
        return _Guard(self._end, rows)

    def _end(self, rows: Sequence[Row], error: Exception) -> None:
        for row in rows:
            row.request.end(error)
            row.leave()
            for line in (self._rows, self._waiting):
                if row in line:
                    line.remove(row)


class _Guard:
    """A context that hands an `Exception` to who ends its rows; it is entered some times a token."""

    __slots__ = ("_end", "_rows")

    def __init__(self, end: Callable[[Sequence[Row], Exception], None], rows: Sequence[Row]):
        self._end, self._rows = end, rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            self._end(self._rows, error)
            return True
        return False


def read_back(drawn: Sequence[Tensor]) -> Sequence[Tensor]:
    """Copies [1] on the host of tokens [1]; waits for the device once."""
    return drawn if drawn[0].device.type == "cpu" else torch.cat(list(drawn)).cpu().split(1)


def _rows_that_draft(model: CausalModel) -> int:
    """Return up to how many rows draft by themselves in less time than their shared steps take.

    Drafts of int8 read a quarter of the bytes of float32, but half of those of float16.
    """
    return 3 if model.weights.cache_dtype == torch.float32 else 1


def _is_nearly_over(row: Row) -> bool:
    """Tell whether its listener hears it, and would soon hear a silence."""
    return row.request.plays and row.request.due < time.monotonic() + _NEARLY_OVER_S


def _by_urgency(rows: Iterable[Row]) -> list[Row]:
    """Sort rows: those first whose listeners have the least left to hear."""
    return sorted(rows, key=lambda row: row.request.due)
