"""Windows of the coarse stage, teacher-forced: what stock's tokens score in them, and in long ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BarkModel

from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.transformer import transformer_spec
from bark_accel.stages.coarse import trim_history
from bark_accel.stages.spec import CoarseSpec

from .forced import Distance, distance

# Scores [n, V] of n tokens [1, n] after a prompt [1, P].
Scorer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Spoken:
    """Input of a coarse stage, and the tokens it drew.

    `semantic` [1, T] and `coarse` [1, T'] int64 begin with as many tokens of a voice preset as the histories say.
    """

    semantic: Tensor
    coarse: Tensor
    semantic_history: int = 0
    coarse_history: int = 0

    @property
    def drawn(self) -> Tensor:
        return self.coarse[:, self.coarse_history :]


@dataclass(frozen=True)
class Window:
    """One window: its prompt [1, P], and the tokens [1, n] that were drawn in it."""

    prompt: Tensor
    tokens: Tensor


def spoken(stock: BarkModel, semantic: Tensor, coarse: Tensor, voice: dict[str, Any] | None = None) -> Spoken:
    """Join what a voice preset gives to the tokens of an utterance, as the coarse stage does.

    Parameters
    ----------
    semantic, coarse : Tensor [1, T] int64
        The outputs of the two stages.
    voice : dict of numpy arrays, optional
    """
    configs = GenerationConfigs.of(stock)
    spec, pad = configs.coarse_spec, configs.semantic.semantic_pad_token
    history = None if voice is None else (_tensor(voice, "semantic_prompt"), _tensor(voice, "coarse_prompt"))
    past_semantic, past_coarse = trim_history(spec, history, coarse.device)
    said = semantic.masked_fill(semantic == pad, spec.semantic_pad_token)
    return Spoken(
        torch.cat([past_semantic, said], 1),
        torch.cat([past_coarse, coarse], 1),
        past_semantic.shape[1],
        past_coarse.shape[1],
    )


def _tensor(voice: dict[str, Any], name: str) -> Tensor:
    return torch.from_numpy(voice[name])


def windows(spec: CoarseSpec, said: Spoken) -> Iterator[Window]:
    """The windows in which the tokens would be drawn, each after the tokens that are known before it."""
    past, infer = said.coarse_history, said.semantic.new_full((1, 1), spec.infer_token)
    while past < said.coarse.shape[1]:
        done = past - said.coarse_history
        start = spec.semantic_start(said.semantic_history, done)
        part = said.semantic[:, start : start + spec.max_input_tokens]
        part = F.pad(part, (0, spec.max_input_tokens - part.shape[1]), value=spec.semantic_pad_token)
        history = said.coarse[:, past - spec.prompt_coarse_tokens(past) : past]
        end = past + spec.longest_window(said.semantic_history, said.coarse_history, done)
        yield Window(torch.cat([part, infer, history], 1), said.coarse[:, past:end])
        past = min(end, said.coarse.shape[1])


def scores(spec: CoarseSpec, score: Scorer, said: Spoken) -> Tensor:
    """Scores [T, codes] of the codes of each drawn token's own codebook."""
    found = []
    for window in windows(spec, said):
        for i, row in enumerate(score(window.prompt, window.tokens)):
            first = spec.semantic_vocab_size + i % spec.num_codebooks * spec.codebook_size
            found.append(row[first : first + spec.codebook_size].float())
    return torch.stack(found)


def score_by(module: Any) -> Scorer:
    """Scores by Transformers' own coarse model."""

    def score(prompt: Tensor, tokens: Tensor) -> Tensor:
        ids = torch.cat([prompt, tokens[:, :-1]], 1)
        return module(ids).logits[0, prompt.shape[1] - 1 :]

    return score


@torch.no_grad()
def long_window_distance(stock: BarkModel, said: Spoken) -> Distance:
    """Compare scores in long windows with those in stock's, by stock's model, of the same tokens.

    They are equal where the windows' prompts are: without a voice, until a history is cut.
    """
    module, spec = stock.coarse_acoustics, GenerationConfigs.of(stock).coarse_spec
    long = replace(spec, fill_positions=transformer_spec(module).block_size)
    return distance(*(scores(layout, score_by(module), said) for layout in (spec, long)))
