"""Transformers' logits processors that our sampler lacks: those up to the last such one are called, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process as processors

from bark_accel.decoding.processors import Called, Processor, ProcessorPlan

# What they do follows from ids and scores alone, so that they may be called for drafts.
_PURE_NAMES = """
    EncoderNoRepeatNGramLogitsProcessor EncoderRepetitionPenaltyLogitsProcessor EpsilonLogitsWarper EtaLogitsWarper
    ExponentialDecayLengthPenalty ForcedBOSTokenLogitsProcessor ForcedEOSTokenLogitsProcessor
    InfNanRemoveLogitsProcessor LogitNormalization MinLengthLogitsProcessor MinNewTokensLengthLogitsProcessor
    MinPLogitsWarper NoBadWordsLogitsProcessor NoRepeatNGramLogitsProcessor RepetitionPenaltyLogitsProcessor
    SequenceBiasLogitsProcessor SuppressTokensAtBeginLogitsProcessor SuppressTokensLogitsProcessor
    TemperatureLogitsWarper TopHLogitsWarper TopKLogitsWarper TopPLogitsWarper TypicalLogitsWarper
"""
_PURE = {getattr(processors, name, None) for name in _PURE_NAMES.split()}
_QUIET = {processors.TemperatureLogitsWarper, processors.TopKLogitsWarper, processors.TopPLogitsWarper}
# Sorting and summing so many scores costs little.
_FEW = 512


@dataclass(frozen=True)
class Prepared:
    """A generation as Transformers prepares it: what would reach its loop, all processors, Bark's `own` among them."""

    arguments: dict[str, Any]
    processors: list[LogitsProcessor]
    own: Sequence[LogitsProcessor]

    @property
    def prompt(self) -> Tensor:
        """The ids [B, T] that the first call of a processor gets."""
        return self.arguments["input_ids"]

    def is_own(self, processor: LogitsProcessor) -> bool:
        return any(processor is rule for rule in self.own)

    def guesses(self, processor: LogitsProcessor) -> bool:
        """Tell whether it may be called for a token that is not sure to come."""
        return self.is_own(processor) or type(processor) in _PURE

    def plan(self, count: int, prepare: Callable[[Tensor], Prepared]) -> ProcessorPlan | None:
        """Plan to call the first `count` processors, if any, prepared anew for each prompt [B, T]."""
        first = self.processors[:count]
        if not first:
            return None

        def begin(prompt: Tensor) -> Called:
            prepared = prepare(prompt)
            called = prepared.processors[:count]
            quick = [_quick(p) for p in called]
            guessing = [q for p, q in zip(called, quick, strict=True) if prepared.guesses(p)]
            return Called(prepared.prompt, quick, guessing)

        names = [type(p).__name__ for p in first if not self.is_own(p) and type(p) not in _QUIET]
        has_rules = any(self.is_own(p) for p in first)
        return ProcessorPlan(begin, any(map(self.guesses, first)), has_rules, ", ".join(names))


def fills(warper: Any) -> bool:
    """Tell whether a warper puts another score than -inf in the place of those that it takes."""
    return bool(getattr(warper, "filter_value", -torch.inf) != -torch.inf)


def _quick(processor: Any) -> Processor:
    """The processor, or the same of it in less time."""
    if type(processor) is processors.SuppressTokensLogitsProcessor:
        return _Banning(processor.suppress_tokens)
    if type(processor) in (processors.TypicalLogitsWarper, processors.EtaLogitsWarper) and not fills(processor):
        return _AmongFew(processor)
    return processor


class _Banning:
    """`SuppressTokensLogitsProcessor`, which looks for its ids among all of them at every call, once."""

    def __init__(self, tokens: Tensor):
        self._tokens = tokens
        self._banned: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self._banned is None:
            every = torch.arange(scores.shape[1], dtype=torch.int64, device=scores.device)
            self._banned = torch.isin(every, self._tokens.to(scores.device))
        return scores.masked_fill(self._banned, -torch.inf)


class _AmongFew:
    """A warper by probabilities, on the few scores above -inf that a top k has left: all others have none."""

    def __init__(self, warper: Processor):
        self._warper = warper

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        most = int((scores > -torch.inf).sum(1).max())
        if not 0 < most <= _FEW:
            return self._warper(ids, scores)
        few, places = scores.topk(most)
        return torch.full_like(scores, -torch.inf).scatter(1, places, self._warper(ids, few))
