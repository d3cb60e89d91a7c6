"""Drawing the next token: Bark's token rules and the usual sampling options, on Transformers' own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backend import Ops


@dataclass(frozen=True)
class SamplingConfig:
    """Resolved options of one stage.

    `top_k` 0, `top_p` 1.0 and `min_eos_p` 0.0 mean off; `renormalize` is Transformers' `renormalize_logits`, which
    changes roundings; `stop_tokens` end a row, which is filled with `pad_token`.
    """

    do_sample: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_eos_p: float = 0.0
    renormalize: bool = False
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

    `torch.multinomial(p, 1)` is `argmax(p / Exponential(1) noise)`, value and generator state alike, so noise for the
    full vocabulary drawn from the default generator gives Transformers' token while only the allowed rows of the
    head are computed.
    """

    def __init__(self, config: SamplingConfig, rows: int, vocab_size: int, device: torch.device, ops: Ops):
        self.config = config
        self._ops = ops
        with torch.inference_mode(False):
            shape = (rows, vocab_size)
            self._noise = torch.empty(shape, dtype=torch.float32, device=device) if config.do_sample else None

    def draw(self, logits: Tensor, allowed: TokenRange) -> Tensor:
        """Token ids [B] int64 from `logits` [B, head rows of `allowed`]."""
        config = self.config
        if self._noise is not None:
            self._noise.exponential_()
        return self._ops.fused_sample(
            logits,
            self._noise,
            first_id=allowed.begin,
            allowed_begin=allowed.begin,
            allowed_end=allowed.end,
            eos_id=allowed.eos,
            min_eos_p=config.min_eos_p,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            renormalize=config.renormalize,
        )
