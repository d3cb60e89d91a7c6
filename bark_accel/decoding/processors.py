"""Processors of scores that are called one after the other in Python: those that the samplers lack, and a caller's."""

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
    token that is not sure to come: they depend on nothing but their arguments.
    """

    prompt: Tensor
    processors: Sequence[Processor]
    guessing: Sequence[Processor]


@dataclass(frozen=True)
class ProcessorPlan:
    """Makes the processors of one prompt after the other.

    `guesses` tells whether any of them may be called for a token that is not sure to come; `has_rules` that Bark's own
    rules are among these, so that a sampler has none to apply; `names` are for a report.
    """

    begin: Callable[[Tensor], Called]
    guesses: bool
    has_rules: bool
    names: str


class Processing:
    """Calls the processors of a plan in the order of the tokens, each with the ids so far."""

    def __init__(self, plan: ProcessorPlan):
        self.plan = plan
        self._called: Called | None = None
        self._ids = torch.empty(0, 0, dtype=torch.int64, device="cpu")

    def begin(self, prompt: Tensor) -> None:
        """Begin a generation after a prompt [B, T]."""
        self._called = self.plan.begin(prompt)
        self._ids = self._called.prompt

    def scores(self, logits: Tensor, *, draft: bool) -> Tensor:
        """Return the scores [B, V] float32 of the next token; only what may guess is called for a draft."""
        called = self._called
        assert called is not None, "begin comes first"
        for processor in called.guessing if draft else called.processors:
            logits = processor(self._ids, logits)
        return logits

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
