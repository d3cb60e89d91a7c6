"""Draws as suno's own code does, and from the same random numbers.

It filters before it divides by the temperature, asks for the end of speech after that, and draws noise for the ids that
a step may take only, where Transformers draws it for the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from bark_accel.ops.backend import Ops

from .sampling import Sampler, SampleRules, SamplingConfig, TokenRange


@dataclass(frozen=True)
class SunoSampling(SamplingConfig):
    """Options of a causal stage. The inherited `temperature`, `top_k` and `top_p` stay off: these come before them.

    `nucleus` is the probability that the kept tokens have together, at temperature 1; `most_likely` how many are kept;
    None is off.
    """

    nucleus: float | None = None
    most_likely: int | None = None
    divisor: float = 1.0

    def sampler(self, vocab_size: int, ops: Ops) -> SunoSampler:
        """Make a sampler of these options; it has no use for the size of the vocabulary."""
        return SunoSampler(self, vocab_size, ops)

    def filtered(self, logits: Tensor) -> Tensor:
        """Logits [B, L] float32, -inf where they are not kept, divided by the temperature."""
        logits = logits.float()
        if self.nucleus is not None:
            logits = _nucleus(logits, self.nucleus)
        if self.most_likely is not None:
            kept = logits.topk(min(self.most_likely, logits.shape[1])).values
            logits = logits.masked_fill(logits < kept[:, -1:], -torch.inf)
        return logits / self.divisor


class SunoSampler(Sampler):
    """Draws one token per row; the generator advances past the noise of the allowed ids."""

    config: SunoSampling
    draws_all_ids = False

    def rules(self, allowed: TokenRange, device: torch.device) -> SampleRules:
        """Return the rules for ids that are counted from the first allowed one."""
        eos = -1 if allowed.eos < 0 else allowed.eos - allowed.begin
        return super().rules(TokenRange(0, allowed.end - allowed.begin, eos), device)

    def _drawn(self, logits: Tensor, allowed: TokenRange, generator: Generator | None) -> Tensor:
        """See `Sampler.draw`. The allowed ids lie side by side, so that all of `logits` are candidates."""
        rules = self.rules(allowed, logits.device).arguments
        filtered = self.config.filtered(logits)
        ids = self._ops.fused_multinomial(filtered, generator, logits.shape[1], *rules)
        # On a GPU, a negative id names the fault of a row that could not be drawn from.
        return torch.where(ids < 0, ids, ids + allowed.begin) if allowed.begin else ids


def draw_frames(logits: Tensor, temperature: float | None) -> Tensor:
    """Codes [N] int64 of N frames from logits [N, ids], each from noise that is drawn for it alone.

    A `temperature` of None takes the most likely code.
    """
    if temperature is None:
        return logits.argmax(1)
    probabilities = (logits.float() / temperature).softmax(1)
    noise = torch.empty_like(probabilities)
    # On Intel CPUs and GPUs torch's numbers depend on how many are drawn at once.
    for frame in noise:
        frame.exponential_()
    return (probabilities / noise).argmax(1)


def _nucleus(logits: Tensor, probability: float) -> Tensor:
    """-inf for the tokens after those that together reach `probability`; the first one is kept in any case."""
    ordered, order = logits.sort(1, descending=True)
    before = ordered.softmax(1).cumsum(1).roll(1, 1)
    before[:, 0] = 0
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before > probability)
    return logits.masked_fill(dropped, -torch.inf)
