"""Transformers' logits processors -> the edits of the logits that our sampler makes before Bark's own rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process as processors

from bark_accel.decoding.edits import LogitsEdits


@dataclass
class ReadEdits:
    """Edits of the logits that processors before Bark's own ask for, given the prompt's length and the vocabulary.

    `end_token` is the only one that `min_new_tokens` can keep back; None where none can be.
    """

    prompt_tokens: int
    vocab_size: int
    end_token: int | None = None
    min_new_tokens: int = 0
    bias: dict[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    not_first: tuple[int, ...] = ()

    def take(self, found: list[LogitsProcessor], own: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
        """Read the processors before the last of Bark's `own`; return those, and all from the first one that we lack.

        Bans, early ends among them, may come in any order (Transformers puts `begin_suppress_tokens` between Bark's two
        rules); only a bias has to precede the penalty, as it does.
        """
        rules: list[LogitsProcessor] = []
        for index, processor in enumerate(found):
            reader = _READERS.get(type(processor))
            if own and processor is own[-1]:
                return [*rules, *found[index:]]
            if any(processor is rule for rule in own):
                rules.append(processor)
            elif reader is None or not reader(self, processor):
                return [*rules, *found[index:]]
        return rules

    @property
    def edits(self) -> LogitsEdits:
        return LogitsEdits(tuple(sorted(self.bias.items())), self.repetition_penalty, self.not_first)


def _min_length(read: ReadEdits, processor: Any) -> bool:
    return _keep_back(read, processor, processor.min_length - read.prompt_tokens)


def _min_new_tokens(read: ReadEdits, processor: Any) -> bool:
    least = processor.prompt_length_to_skip + processor.min_new_tokens - read.prompt_tokens
    return _keep_back(read, processor, least)


def _keep_back(read: ReadEdits, processor: Any, least: int) -> bool:
    """Read how many tokens come before an end, which may be other tokens than the stage's own."""
    read.min_new_tokens = max(read.min_new_tokens, least)
    return {*processor.eos_token_id.tolist()} == {read.end_token}


def _sequence_bias(read: ReadEdits, processor: Any) -> bool:
    bias = {sequence: float(value) for sequence, value in processor.sequence_bias.items()}
    finite = all(math.isfinite(value) or value == -math.inf for value in bias.values())
    if not finite or any(len(sequence) != 1 or sequence[0] >= read.vocab_size for sequence in bias):
        return False
    if read.repetition_penalty != 1.0 and any(math.isfinite(value) for value in bias.values()):
        return False
    for (token,), value in bias.items():
        read.bias[token] = read.bias.get(token, 0.0) + value
    return True


def _are_ids(tokens: Tensor) -> bool:
    """Tell whether these are whole numbers: of others, Transformers compares some with the ids and refuses some."""
    return len(tokens) == 0 or tokens.dtype == torch.int64


def _suppress(read: ReadEdits, processor: Any) -> bool:
    if not _are_ids(processor.suppress_tokens):
        return False
    read.bias.update(dict.fromkeys(processor.suppress_tokens.tolist(), -math.inf))
    return True


def _suppress_first(read: ReadEdits, processor: Any) -> bool:
    read.not_first = tuple(processor.begin_suppress_tokens.tolist())
    return processor.begin_index == read.prompt_tokens and _are_ids(processor.begin_suppress_tokens)


def _penalty(read: ReadEdits, processor: Any) -> bool:
    ignored = getattr(processor, "prompt_ignore_length", None)
    if ignored is not None and bool((ignored != 0).any()):
        return False
    read.repetition_penalty = processor.penalty
    return True


_READERS: dict[type, Callable[[ReadEdits, Any], bool]] = {
    processors.MinLengthLogitsProcessor: _min_length,
    processors.MinNewTokensLengthLogitsProcessor: _min_new_tokens,
    processors.SequenceBiasLogitsProcessor: _sequence_bias,
    processors.NoBadWordsLogitsProcessor: _sequence_bias,
    processors.SuppressTokensLogitsProcessor: _suppress,
    processors.SuppressTokensAtBeginLogitsProcessor: _suppress_first,
    processors.RepetitionPenaltyLogitsProcessor: _penalty,
}
