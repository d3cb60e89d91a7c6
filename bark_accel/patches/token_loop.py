"""Streaming where Transformers' own token loop has to run a stage: Bark's token rules, and an ear for the tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    BarkEosPrioritizerLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from bark_accel.decoding.sampling import TokenRange

# The last of Bark's own processors in a stage's list. What the semantic stage's other one bans, the rules ban too.
_LAST_RULES = (BarkEosPrioritizerLogitsProcessor, AlternatingCodebooksLogitsProcessor)


class TokenTap(BaseStreamer):
    """Streamer for Transformers' own loop. `BarkTokenRules` announces each token; what comes unannounced is a prompt.

    Parameters
    ----------
    before_step : callable
        Called before each token; may raise to stop the loop.
    on_token : callable, optional
        Called with each token, [B] int64.
    """

    def __init__(self, before_step: Callable[[], None], on_token: Callable[[Tensor], None] | None = None):
        self._before_step = before_step
        self._on_token = on_token
        # A loop may hand out its tokens a step late.
        self._expected: deque[int] = deque()

    def expect(self, codebook: int) -> None:
        self._before_step()
        self._expected.append(codebook)

    def put(self, value: Tensor) -> None:
        if not self._expected:
            self._before_step()
            return
        self._expected.popleft()
        if self._on_token is not None:
            self._on_token(value)

    def end(self) -> None:
        self._expected.clear()


class BarkTokenRules(LogitsProcessor):
    """Bark's own rules in one pass: which ids a step may produce, and the end of speech where it is likely enough.

    Equals `SuppressTokensLogitsProcessor` with `BarkEosPrioritizerLogitsProcessor` (semantic) and
    `AlternatingCodebooksLogitsProcessor` (coarse) of Transformers.

    Parameters
    ----------
    allowed : sequence of TokenRange
        One for each codebook; the steps after the prompt take turns.
    end_tokens, min_eos_p
        One of these ids is forced where the probability of any is higher than `min_eos_p`.
    tap : TokenTap, optional
        Told the codebook of each token before it is drawn.
    """

    def __init__(
        self,
        allowed: Sequence[TokenRange],
        *,
        end_tokens: Sequence[int] = (),
        min_eos_p: float | None = None,
        tap: TokenTap | None = None,
    ):
        self._allowed = tuple(allowed)
        self._end_tokens = list(end_tokens)
        self._min_eos_p = min_eos_p
        self._tap = tap
        self._prompt_tokens = 0

    def start(self, prompt_tokens: int) -> None:
        """Begin a generation of that many prompt tokens."""
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        codebook = (input_ids.shape[1] - self._prompt_tokens) % len(self._allowed)
        if self._tap is not None:
            self._tap.expect(codebook)
        allowed = self._allowed[codebook]
        ids = torch.arange(scores.shape[1], dtype=torch.int64, device=scores.device)
        forbidden = ~(((ids >= allowed.begin) & (ids < allowed.end)) | (ids == allowed.eos))
        scores = scores.masked_fill(forbidden, -torch.inf)
        if not self._min_eos_p:
            return scores
        probabilities = scores.float().softmax(-1)[:, self._end_tokens]
        ends = (probabilities > self._min_eos_p).any(1, keepdim=True)
        others = ~torch.isin(ids, torch.tensor(self._end_tokens, dtype=torch.int64, device=ids.device))
        return scores.masked_fill(ends & others, -torch.inf)


class TokenLoop:
    """Transformers' sampling loop, listened to: for `run_with_loop`.

    Everything is prepared by Transformers; `rules` takes the place of Bark's own processors, `extra` processors follow.
    """

    def __init__(self, rules: BarkTokenRules, tap: TokenTap, extra: Sequence[LogitsProcessor]):
        self._rules = rules
        self._tap = tap
        self._extra = list(extra)

    def __call__(self, model: Any, input_ids: Tensor, logits_processor: Any = None, **prepared: Any) -> Any:
        self._rules.start(input_ids.shape[1])
        processors = LogitsProcessorList(self._replaced(list(logits_processor)))
        prepared |= {"logits_processor": processors, "streamer": self._tap}
        return type(model)._sample(model, input_ids, **prepared)

    def _replaced(self, processors: list[LogitsProcessor]) -> list[LogitsProcessor]:
        last = next(i for i, p in enumerate(processors) if type(p) in _LAST_RULES)
        return [*processors[:last], self._rules, *self._extra, *processors[last + 1 :]]
