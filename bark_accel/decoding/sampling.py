"""Drawing the next token: Bark's token rules and the usual sampling options, on Transformers' own random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bark_accel.ops.backend import Ops
from bark_accel.transformer.causal import CausalModel


@dataclass(frozen=True)
class SamplingConfig:
    """Resolved options of one stage.

    `top_k` 0, `top_p` 1.0 and `min_eos_p` 0.0 mean off; `renormalize` is Transformers' `renormalize_logits`, which
    changes roundings; `stop_tokens` end a row, which is filled with `pad_token`, and none is drawn among the first
    `min_new_tokens`.
    """

    do_sample: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_eos_p: float = 0.0
    renormalize: bool = False
    min_new_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()
    pad_token: int | None = None


@dataclass(frozen=True)
class TokenRange:
    """Ids a step may produce: `begin`..`end` - 1 and, where it is not -1, `eos`."""

    begin: int
    end: int
    eos: int = -1

    @property
    def head_rows(self) -> slice:
        """The rows of the head that can matter."""
        return slice(self.begin, max(self.end, self.eos + 1))


class Sampler:
    """Draws one token per row.

    The draw advances torch's default generator past the full vocabulary, as Transformers' `torch.multinomial` does,
    so that the same seed gives the same token while only the allowed rows of the head are computed.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int, ops: Ops):
        self.config = config
        self._vocab_size = vocab_size
        self.generator: torch.Generator | None = None
        """Drawn from instead of torch's default generator, where a generation leaves Transformers' order."""
        self._ops = ops

    @classmethod
    def of(cls, model: CausalModel, config: SamplingConfig) -> Sampler:
        """Make one that draws from a model's logits."""
        return cls(config, model.spec.output_vocab_size, model.ops)

    def draw(self, logits: Tensor, allowed: TokenRange, generator: torch.Generator | None = None) -> Tensor:
        """Token ids [B] int64 from `logits` [B, head rows of `allowed`]; `generator` replaces the sampler's own."""
        config = self.config
        rules: dict[str, Any] = {
            "first_id": allowed.begin,
            "allowed_begin": allowed.begin,
            "allowed_end": allowed.end,
            "eos_id": allowed.eos,
            "min_eos_p": config.min_eos_p,
        }
        if not config.do_sample:
            return self._ops.fused_sample(logits, None, **rules)
        return self._ops.fused_multinomial(
            logits,
            generator or self.generator,
            self._vocab_size,
            **rules,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            renormalize=config.renormalize,
        )
