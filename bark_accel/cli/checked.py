"""The findings of `check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bark_accel.bench.measure import Comparison, summarise

from .console import numbered

if TYPE_CHECKING:
    from bark_accel.bench.approximations import SoundDistance
    from bark_accel.bench.check import Compared
    from bark_accel.bench.forced import Distance
    from bark_accel.bench.voices import Held


@dataclass(frozen=True)
class Checked:
    """Findings: requests with both runs, distances of scores by precision and stage, of sounds by approximation with
    the number of utterances, seconds to the first sound, kernels per token of stock and accelerated by stage (None on a
    CPU; a text: why they could not be counted), voices from the best to the worst (None: not asked for), what there was
    no time for, and the semantic tokens that an utterance had at most."""

    compared: Sequence[Compared]
    distances: dict[str, dict[str, Distance]]
    sounds: dict[str, tuple[SoundDistance, int]]
    first_sound_s: float
    kernels: dict[str, dict[str, float]] | str | None
    voices: Sequence[Held] | None
    left_out: Sequence[str]
    most_tokens: int

    @property
    def wrong(self) -> list[str]:
        return [f"{c.request}: {line}" for c in self.compared for line in c.verdict.wrong]

    @property
    def ties(self) -> list[str]:
        return [f"{c.request}: {tie}" for c in self.compared for tie in c.verdict.ties]

    @property
    def rows(self) -> list[Comparison]:
        return summarise([(c.stock, c.accelerated) for c in self.compared])

    @property
    def memory(self) -> tuple[int, int] | None:
        """The most bytes that any request took, of stock and accelerated; None where the system does not tell."""
        pairs = [(c.stock_bytes, c.accelerated_bytes) for c in self.compared]
        told = [(stock, fast) for stock, fast in pairs if stock is not None and fast is not None]
        if len(told) < len(pairs):
            return None
        return max(stock for stock, _ in told), max(fast for _, fast in told)

    def verdict(self) -> str:
        total = self.rows[-1].ratio
        texts = numbered(len({one.request.text for one in self.compared}), "text")
        voices = "with voices and without" if any(one.request.voice for one in self.compared) else "without voices"
        said = f"{len(self.compared)} requests of {texts}, greedy and sampled, {voices}"
        if self.wrong:
            requests = len({line.partition(": ")[0] for line in self.wrong})
            return f"NOT stock's speech in {requests} of {said}."
        but = f" but for {len(self.ties)} that rounding decides" if self.ties else ""
        return f"Stock's tokens in all of {said}{but}; {total:.1f} times as fast as stock."
