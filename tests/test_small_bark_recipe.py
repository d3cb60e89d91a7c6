"""The examples that the small Bark learns from are laid out as stock's `generate` lays out its inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationMixin

from recipes.small_bark import gpt, layout
from recipes.small_bark.gpt import Utterance
from recipes.small_bark.tokens import CODEBOOK_SIZE, CODEBOOKS, SEMANTIC_TOKENS

CONFIGS = layout.stage_configs({"semantic": 1.0, "coarse": 1.0, "fine": 1.0})
LENGTHS = [(7, None), (70, None), (30, 12), (70, 13), (70, 65)]


class Fixed:
    """In place of a random generator: the same choice always."""

    def __init__(self, choice: int) -> None:
        self.choice, self.bound = choice, None

    def integers(self, bound: int) -> int:
        self.bound = bound
        return min(self.choice, bound - 1)


def utterance(length: int, seed: int) -> Utterance:
    rng = np.random.default_rng(seed)
    codes = rng.integers(CODEBOOK_SIZE, size=(CODEBOOKS, 2 * length))
    return Utterance(rng.integers(SEMANTIC_TOKENS, size=length), codes, [4, 7, 5], "slt")


def preset(before: Utterance | None) -> dict[str, torch.Tensor] | None:
    if before is None:
        return None
    codes = torch.from_numpy(before.codes)
    return {"semantic_prompt": torch.from_numpy(before.semantic), "coarse_prompt": codes[:2], "fine_prompt": codes}


def cases() -> list[tuple[Utterance, Utterance | None]]:
    return [(utterance(length, 1), utterance(other, 2) if other else None) for length, other in LENGTHS]


@pytest.mark.parametrize("spoken, before", cases())
def test_semantic_examples_are_what_generate_embeds(spoken, before, monkeypatch):
    model = gpt.build("semantic", 0).eval()
    seen = {}
    monkeypatch.setattr(
        GenerationMixin, "generate", lambda self, ids, inputs_embeds, **_: seen.update(embeds=inputs_embeds) or ids
    )
    monkeypatch.setattr(
        model, "forward", lambda inputs_embeds, **_: seen.update(learnt=inputs_embeds) or _logits(model, inputs_embeds)
    )
    gpt.semantic_loss(model, SimpleNamespace(draw=lambda rng: (spoken, before)), np.random.default_rng(0), batch=1)
    text = torch.zeros(1, 40, dtype=torch.long)
    text[0, :3] = torch.tensor(spoken.text)
    mask = (torch.arange(40) < 3).long()[None]
    model.generate(text, CONFIGS[0], history_prompt=preset(before), attention_mask=mask)
    assert torch.equal(seen["learnt"][:, : layout.TEXT_LENGTH + 1], seen["embeds"])
    assert seen["learnt"].shape[1] == layout.TEXT_LENGTH + 1 + len(spoken.semantic)


def _logits(model, embeds):
    return SimpleNamespace(logits=torch.zeros(*embeds.shape[:2], model.config.output_vocab_size))


@pytest.mark.parametrize("spoken, before", cases())
def test_coarse_windows_are_those_of_generate(spoken, before, monkeypatch):
    model, truth, windows = gpt.build("coarse", 0).eval(), torch.from_numpy(spoken.coarse()), []

    def generate(self, tokens, max_new_tokens, **_):
        done = sum(size for _, size in windows)
        windows.append((tokens[0].numpy(), max_new_tokens))
        return torch.hstack([tokens, truth[None, done : done + max_new_tokens]])

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    semantic = torch.from_numpy(np.append(spoken.semantic, layout.SEMANTIC_END))[None]
    model.generate(semantic, *CONFIGS[:2], codebook_size=CODEBOOK_SIZE, history_prompt=preset(before))
    choice = Fixed(0)
    for turn, (tokens, size) in enumerate(windows):
        choice.choice = turn
        learnt, new = gpt.coarse_window(spoken, before, choice)
        assert new == size and np.array_equal(learnt[:-new], tokens)
    assert choice.bound == len(windows)


@pytest.mark.parametrize("spoken, before", cases())
@pytest.mark.parametrize("book", range(2, CODEBOOKS))
def test_fine_windows_are_those_of_generate(spoken, before, book, monkeypatch):
    model, seen = gpt.build("fine", 0).eval(), []
    codes = np.zeros((1000, CODEBOOKS), np.int64)
    known = 0 if before is None else min(before.codes.shape[1], layout.FINE_HISTORY)
    stream = spoken.codes.T if before is None else np.concatenate([before.codes.T[-known:], spoken.codes.T])
    codes[: len(stream)] = stream
    length = max(len(stream), layout.FINE_INPUT)

    def forward(codebook, inputs):
        turn = len(seen) // (CODEBOOKS - 2)
        start = min(turn * layout.FINE_HISTORY, length - layout.FINE_INPUT)
        seen.append((codebook, inputs[0].numpy().copy()))
        return SimpleNamespace(logits=_one_hot(codes[start : start + layout.FINE_INPUT, codebook]))

    monkeypatch.setattr(model, "forward", forward)
    coarse = torch.from_numpy(spoken.coarse())[None]
    model.generate(coarse, *CONFIGS, codebook_size=CODEBOOK_SIZE, history_prompt=preset(before))
    expected = [inputs for codebook, inputs in seen if codebook == book]
    choice = Fixed(0)
    for turn, inputs in enumerate(expected):
        choice.choice = turn
        learnt, targets = gpt.fine_window(spoken, before, book, choice)
        assert np.array_equal(learnt[:, : book + 1], inputs[:, : book + 1])
        assert (targets != -100).any()
    assert choice.bound == len(expected)


def _one_hot(codes: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(codes), CODEBOOK_SIZE + 1).float()[None]
