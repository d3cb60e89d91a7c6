"""Processors of Transformers that our sampler lacks, those before them, and criteria to end: called in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteriaList
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria

from bark_accel._arguments import name_of
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
    """A generation as Transformers prepares it: what would reach its loop, all processors, Bark's `own` among them.

    `end_token` ends a row of a stage that itself knows which tokens do, so that their criterion is not asked; None: it
    does not.
    """

    arguments: dict[str, Any]
    processors: list[LogitsProcessor]
    own: Sequence[LogitsProcessor]
    end_token: int | None

    @property
    def knows_end(self) -> bool:
        return self.end_token is not None

    @property
    def prompt(self) -> Tensor:
        """The ids [B, T] that the first call of a processor gets."""
        return self.arguments["input_ids"]

    def is_own(self, processor: LogitsProcessor) -> bool:
        return any(processor is rule for rule in self.own)

    def guesses(self, processor: LogitsProcessor) -> bool:
        """Tell whether it may be called for a token that is not sure to come."""
        return self.is_own(processor) or type(processor) in _PURE

    def criteria(self) -> StoppingCriteriaList:
        """Criteria beside those that the stage knows."""
        known = {criteria.MaxLengthCriteria, *([criteria.EosTokenCriteria] if self.knows_end else [])}
        return StoppingCriteriaList(c for c in self.arguments["stopping_criteria"] if type(c) not in known)

    def pads(self) -> bool:
        """Tell whether criteria that are asked have Transformers pad the rows that have ended."""
        return any(hasattr(c, "eos_token_id") for c in self.criteria())

    def plan(self, count: int, prepare: Callable[[Tensor, int | None], Prepared]) -> ProcessorPlan | None:
        """Plan to call the first `count` processors and the criteria, made anew for each prompt [B, T] and its length.

        None where nothing is to be called.
        """
        first, ends = self.processors[:count], self.criteria()
        if not first and not ends:
            return None

        def begin(prompt: Tensor, new_tokens: int | None) -> Called:
            prepared = prepare(prompt, new_tokens)
            called, others = prepared.processors[:count], prepared.processors[count:]
            guesses = [prepared.guesses(p) for p in called]
            quick = [_quick(p) if pure else _Checked(p) for p, pure in zip(called, guesses, strict=True)]
            guessing = [q for q, pure in zip(quick, guesses, strict=True) if pure]
            return Called(prepared.prompt, quick, guessing, others, partial(_ended, prepared.criteria()))

        guesses = [self.guesses(p) for p in first]
        has_rules = any(self.is_own(p) for p in first)
        names = ", ".join(map(name_of, ends))
        return ProcessorPlan(begin, any(guesses), all(guesses), has_rules, self._names(first), names)

    def _names(self, called: Sequence[LogitsProcessor]) -> str:
        """Name those that our sampler lacks; the usual warpers only where it lacks them as they are here."""
        others = [p for p in called if not self.is_own(p)]
        return ", ".join(name_of(p) for p in [p for p in others if type(p) not in _QUIET] or others)


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


class _Checked:
    """A caller's processor, or one of Transformers' that calls a caller's function."""

    def __init__(self, processor: Processor):
        self._processor = processor

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Call it.

        Raises
        ------
        TypeError, ValueError
            It gave no scores of these rows, or wrote to the ids, which have been given out.
        """
        given, rows, device = ids.clone(), len(scores), scores.device
        found = self._processor(ids, scores)
        if not ids.equal(given):
            raise ValueError(f"{name_of(self._processor)}: expected input_ids left as they are, got them changed")
        expected = f"{name_of(self._processor)}: expected scores [{rows}, ids] on {device} back"
        if not isinstance(found, Tensor):
            raise TypeError(f"{expected}, got {type(found).__name__}")
        if found.ndim != 2 or len(found) != rows or found.device != device:
            raise ValueError(f"{expected}, got {list(found.shape)} on {found.device}")
        return found


def _ended(criteria: StoppingCriteriaList, ids: Tensor) -> Tensor:
    """The rows [B] bool that end with the last of the ids [B, T].

    Raises `ValueError` where these are written to, and for other answers than one of each row.
    """
    given, names = ids.clone(), ", ".join(map(name_of, criteria))
    ended = criteria(ids, None)
    if not ids.equal(given):
        raise ValueError(f"{names}: expected input_ids left as they are, got them changed")
    if ended.shape != ids.shape[:1]:
        raise ValueError(f"{names}: expected bools [{len(ids)}], whether each row ends, got {list(ended.shape)}")
    return (ended & 1).bool()  # as Transformers' loop reads other numbers


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
