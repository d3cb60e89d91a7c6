"""The findings of `check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bark_accel.bench.measure import Comparison, summarise

from .console import numbered

if TYPE_CHECKING:
    from bark_accel.bench.approximations import SoundDistance
    from bark_accel.bench.check import Compared
    from bark_accel.bench.forced import Distance
    from bark_accel.bench.voices import Held


@dataclass
class Checked:
    """Findings so far.

    Attributes
    ----------
    most_tokens : int
        Semantic tokens that an utterance has at most.
    compared : list of Compared
        Requests with both runs.
    distances : dict
        Of scores, by way to compute them and by stage.
    sounds : dict
        Distance by approximation, with the number of utterances.
    kernels : dict, str or None
        Per token of stock and accelerated by stage; None on a CPU, a text: why they could not be counted.
    voices : list of Held or None
        From the best to the worst; None: not asked for.
    left_out : list of str
        What was not done, for lack of time or because the run was stopped.
    stopped_by : str or None
        A signal or an error that ended the run early.
    """

    most_tokens: int
    compared: list[Compared] = field(default_factory=list)
    distances: dict[str, dict[str, Distance]] = field(default_factory=dict)
    sounds: dict[str, tuple[SoundDistance, int]] = field(default_factory=dict)
    first_sound_s: float | None = None
    kernels: dict[str, dict[str, float]] | str | None = None
    voices: list[Held] | None = None
    left_out: list[str] = field(default_factory=list)
    stopped_by: str | None = None

    @property
    def wrong(self) -> list[str]:
        return [f"{c.request}: {line}" for c in self.compared for line in c.verdict.wrong]

    @property
    def ties(self) -> list[str]:
        return [f"{c.request}: {tie}" for c in self.compared for tie in c.verdict.ties]

    @property
    def rows(self) -> list[Comparison]:
        return summarise([(c.stock, c.accelerated) for c in self.compared]) if self.compared else []

    @property
    def memory(self) -> tuple[int, int] | None:
        """The most bytes that any request took, of stock and accelerated; None where the system does not tell."""
        pairs = [(c.stock_bytes, c.accelerated_bytes) for c in self.compared]
        told = [(stock, fast) for stock, fast in pairs if stock is not None and fast is not None]
        if not told or len(told) < len(pairs):
            return None
        return max(stock for stock, _ in told), max(fast for _, fast in told)

    def verdict(self) -> str:
        if self.stopped_by is None:
            return self._judged()
        until_then = self._judged() if self.compared else "Nothing was compared."
        return f"INCOMPLETE, stopped by {self.stopped_by}. Until then: {until_then}"

    def _judged(self) -> str:
        total = self.rows[-1].ratio
        texts = numbered(len({one.request.text for one in self.compared}), "text")
        voices = "with voices and without" if any(one.request.voice for one in self.compared) else "without voices"
        said = f"{len(self.compared)} requests of {texts}, greedy and sampled, {voices}"
        if self.wrong:
            requests = len({line.partition(": ")[0] for line in self.wrong})
            return f"NOT stock's speech in {requests} of {said}."
        but = f" but for {len(self.ties)} that rounding decides" if self.ties else ""
        return f"Stock's tokens in all of {said}{but}; {total:.1f} times as fast as stock."
