"""Calls in Python for each token: processors that the samplers lack, those of a caller, and criteria to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# (ids [B, T] so far, scores [B, V]) -> scores [B, V]
Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Called:
    """Processors of one prompt, as they are called before a sampler's own options.

    `prompt` [B, T] are the ids that the first call gets. `guessing` are those of `processors` that may be called for a
    token that is not sure to come: they depend on nothing but their arguments. `others` do what a sampler's own options
    do to scores. `ends` tells of the ids after each token, [B, T], which rows [B] bool end there.
    """

    prompt: Tensor
    processors: Sequence[Processor]
    guessing: Sequence[Processor]
    others: Sequence[Processor]
    ends: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProcessorPlan:
    """Makes the processors of one prompt after the other.

    `begin` takes a prompt [B, T] and the most tokens that follow it, None where all prompts have as many. `guesses`
    tells whether any of them may be called for a token that is not sure to come; `guesses_all` whether all may: then
    they have no state and draw no random numbers. `has_rules` tells that Bark's own rules are among these, so that a
    sampler has none to apply; `names` of processors and `criteria` are for a report, and empty where none is called.
    """

    begin: Callable[[Tensor, int | None], Called]
    guesses: bool
    guesses_all: bool
    has_rules: bool
    names: str
    criteria: str


class Processing:
    """Calls the processors of a plan in the order of the tokens, each with the ids so far."""

    def __init__(self, plan: ProcessorPlan):
        self.plan = plan
        self._called: Called | None = None
        self._ids = torch.empty(0, 0, dtype=torch.int64, device="cpu")

    def begin(self, prompt: Tensor, new_tokens: int | None) -> None:
        """Begin a generation of so many tokens after a prompt [B, T]; see `ProcessorPlan.begin`."""
        self._called = self.plan.begin(prompt, new_tokens)
        self._ids = self._called.prompt

    def scores(self, logits: Tensor, *, draft: bool) -> Tensor:
        """Return the scores [B, V] of the next token; only what may guess is called for a draft.

        A caller's processor may leave another number of ids than the logits [B, V] float32 have, or another dtype.
        """
        called = self._begun
        return self._through(called.guessing if draft else called.processors, logits)

    def all_scores(self, scores: Tensor) -> Tensor:
        """Return what `scores` are after the processors that do what a sampler's own options do."""
        return self._through(self._begun.others, scores)

    def ended(self) -> list[bool]:
        """Ask the criteria, once for each token that comes, which rows end with it."""
        return self._begun.ends(self._ids).tolist()

    @property
    def _begun(self) -> Called:
        assert self._called is not None, "begin comes first"
        return self._called

    def _through(self, processors: Sequence[Processor], scores: Tensor) -> Tensor:
        for processor in processors:
            scores = processor(self._ids, scores)
        return scores

    def note(self, tokens: Tensor) -> None:
        """Add tokens [B] to the ids."""
        self._ids = torch.cat([self._ids, tokens[:, None].to(self._ids.device)], dim=1)

    def pad(self, tokens: Tensor) -> None:
        """Put tokens [B] in the place of those noted last: rows that have ended are padded."""
        self._ids = torch.cat([self._ids[:, :-1], tokens[:, None].to(self._ids.device)], dim=1)

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Forget afterwards which tokens were noted inside."""
        ids = self._ids
        try:
            yield
        finally:
            self._ids = ids
