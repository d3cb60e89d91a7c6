"""The three transformers: models and the examples they learn from, laid out as stock's `generate` does it.

Examples come from one utterance, and often from another one of the same voice before it: the voice preset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    BarkCoarseConfig,
    BarkCoarseModel,
    BarkFineConfig,
    BarkFineModel,
    BarkSemanticConfig,
    BarkSemanticModel,
)

from . import layout, loop
from .data import Corpus
from .tokens import CODEBOOK_SIZE, CODEBOOKS, SEMANTIC_TOKENS, Tokens

DEFAULT_VOICE = "slt"
_IGNORED = -100
# The texts are few; the windows of sound are many.
_DROPOUT = {"semantic": 0.1, "coarse": 0.0, "fine": 0.0}
# Without a preset the model speaks with the default voice; other voices are learnt with presets alone.
_PRESET_SHARE = 0.5
# Coarse tokens of the input that are replaced by random ones: the model must bear its own mistakes.
_CORRUPTED = 0.03
# Weight of what the coarse model would say in place of its history, beside what it says next.
_HISTORY_WEIGHT = 0.5


@dataclass
class Utterance:
    """Semantic tokens (n,), codes (CODEBOOKS, 2 n), text ids and voice."""

    semantic: np.ndarray
    codes: np.ndarray
    text: list[int]
    voice: str

    def coarse(self) -> np.ndarray:
        """Interleaved coarse tokens, offset as in the coarse vocabulary: shape (4 n,)."""
        return (self.codes[:2].T + np.array([0, CODEBOOK_SIZE]) + SEMANTIC_TOKENS).reshape(-1)


class Examples:
    """Draws examples for the models; the random numbers come from the generator of the step."""

    def __init__(self, corpus: Corpus, tokens: Tokens, split: str) -> None:
        self._utterances: list[Utterance] = []
        self._by_voice: dict[str, list[Utterance]] = {}
        self.add(corpus, tokens.semantic, tokens.codes, split)

    def add(self, corpus: Corpus, semantic: list[np.ndarray], codes: list[np.ndarray], split: str) -> None:
        """Draw from those of a split of this corpus too."""
        ids = {word: index for index, word in enumerate(layout.TEXT_TOKENS)}
        rows = zip(semantic, codes, corpus.texts, corpus.voices, corpus.splits, strict=True)
        for tokens, code, text, voice, part in rows:
            if part == split:
                text_ids = [ids[word] for word in text.split()]
                utterance = Utterance(tokens.astype(np.int64), code.astype(np.int64), text_ids, voice)
                self._utterances.append(utterance)
                self._by_voice.setdefault(voice, []).append(utterance)

    def draw(self, rng: np.random.Generator) -> tuple[Utterance, Utterance | None]:
        """An utterance, and the one before it where there is a preset."""
        utterance = self._utterances[rng.integers(len(self._utterances))]
        if utterance.voice == DEFAULT_VOICE and rng.random() > _PRESET_SHARE:
            return utterance, None
        others = self._by_voice[utterance.voice]
        return utterance, others[rng.integers(len(others))]


def build(stage: str, seed: int) -> BarkSemanticModel | BarkCoarseModel | BarkFineModel:
    """An untrained transformer of a stage: semantic, coarse or fine."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 128, "num_heads": 4, "dropout": _DROPOUT[stage], "bias": False}
    if stage == "semantic":
        shape |= {"input_vocab_size": layout.SEMANTIC_INPUTS, "output_vocab_size": layout.SEMANTIC_OUTPUTS}
        return BarkSemanticModel(BarkSemanticConfig(block_size=128, num_layers=3, **shape))
    if stage == "coarse":
        shape |= {"input_vocab_size": layout.COARSE_VOCAB, "output_vocab_size": layout.COARSE_VOCAB}
        return BarkCoarseModel(BarkCoarseConfig(block_size=192, num_layers=3, **shape))
    shape |= {"input_vocab_size": layout.FINE_PAD + 1, "output_vocab_size": layout.FINE_PAD + 1}
    books: dict[str, Any] = {"n_codes_total": CODEBOOKS, "n_codes_given": 1}
    return BarkFineModel(BarkFineConfig(block_size=layout.FINE_INPUT, num_layers=3, **books, **shape))


def train(stage: str, examples: Examples, plan: loop.Plan, path: Path, seed: int) -> None:
    """Train the transformer of a stage, or go on with `path`."""
    model = build(stage, seed)
    losses: dict[str, Callable] = {"semantic": semantic_loss, "coarse": coarse_loss, "fine": fine_loss}

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**40, (1,), generator=generator)))
        torch.manual_seed(int(rng.integers(2**40)))
        return losses[stage](model, examples, rng)

    loop.train(model, loss, plan, path, seed)


def semantic_loss(
    model: BarkSemanticModel, examples: Examples, rng: np.random.Generator, batch: int = 24
) -> tuple[Tensor, dict[str, float]]:
    """Text and the preset's last tokens, added; the infer token; the utterance; its end."""
    texts, histories, spoken = [], [], []
    for _ in range(batch):
        utterance, before = examples.draw(rng)
        history = before.semantic[-layout.TEXT_LENGTH :] if before else np.zeros(0, np.int64)
        texts.append(_padded(np.array(utterance.text) + layout.TEXT_OFFSET, layout.TEXT_LENGTH, layout.TEXT_PAD_ID))
        histories.append(_padded(history, layout.TEXT_LENGTH, layout.SEMANTIC_END))
        spoken.append(np.append(utterance.semantic, layout.SEMANTIC_END)[: layout.MAX_SEMANTIC])
    targets = _rows(spoken, _IGNORED)
    embed = model.get_input_embeddings()
    infer = embed(torch.full((batch, 1), layout.SEMANTIC_INFER))
    prompt = embed(_rows(texts, 0)) + embed(_rows(histories, 0))
    inputs = torch.cat([prompt, infer, embed(targets[:, :-1].clamp(min=0))], dim=1)
    logits = model(inputs_embeds=inputs, use_cache=False).logits[:, layout.TEXT_LENGTH :]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
    return loss, {"loss": loss.item()}


def coarse_loss(
    model: BarkCoarseModel, examples: Examples, rng: np.random.Generator, batch: int = 16
) -> tuple[Tensor, dict[str, float]]:
    """One sliding window: semantic tokens around it, the infer token, coarse history, coarse tokens of the window."""
    rows, sizes = [], []
    for _ in range(batch):
        row, size = coarse_window(*examples.draw(rng), rng)
        rows.append(row)
        sizes.append(size)
    tokens = _rows(rows, _IGNORED)
    targets = tokens[:, layout.COARSE_INPUT + 1 :]
    inputs = tokens[:, :-1].clone()
    noise = torch.from_numpy(rng.random(inputs.shape) < _CORRUPTED)
    noise[:, : layout.COARSE_INPUT + 1] = False
    book = (torch.arange(inputs.shape[1]) - layout.COARSE_INPUT - 1) % 2
    # A history of odd length would turn the codebooks around; there is none.
    other = torch.from_numpy(rng.integers(CODEBOOK_SIZE, size=inputs.shape)) + SEMANTIC_TOKENS + book * CODEBOOK_SIZE
    inputs = torch.where(noise & (inputs >= 0), other, inputs.clamp(min=0))
    logits = model(inputs, use_cache=False).logits[:, layout.COARSE_INPUT :]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")
    place = torch.arange(targets.shape[1])
    ends = (tokens != _IGNORED).sum(1, keepdim=True) - layout.COARSE_INPUT - 1
    new = (place >= ends - torch.tensor(sizes)[:, None]) & (place < ends)
    weights = torch.where(new, 1.0, _HISTORY_WEIGHT) * (targets != _IGNORED)
    spectrum, pitch = (
        (losses * new)[:, ::2].sum() / new[:, ::2].sum(),
        (losses * new)[:, 1::2].sum() / new[:, 1::2].sum(),
    )
    return (losses * weights).sum() / weights.sum(), {"spectrum": spectrum.item(), "pitch": pitch.item()}


def coarse_window(utterance: Utterance, before: Utterance | None, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Tokens of one window of BarkCoarseModel.generate, and how many of the last ones it generates."""
    spoken = utterance.coarse()
    semantic, coarse, base = utterance.semantic, spoken, 0
    if before:
        kept = min(layout.COARSE_HISTORY // layout.RATIO, len(before.semantic) - len(before.semantic) % 2)
        semantic = np.concatenate([before.semantic[-kept:], semantic])
        # Stock leaves the last frame of a preset out.
        coarse, base = np.concatenate([before.coarse()[-kept * layout.RATIO : -2], coarse]), kept
    known = len(coarse) - len(spoken)
    done = int(rng.integers(-(-len(spoken) // layout.COARSE_WINDOW))) * layout.COARSE_WINDOW
    size = min(layout.COARSE_WINDOW, len(spoken) - done)
    first = max(0, base + done // layout.RATIO - layout.COARSE_HISTORY // layout.RATIO)
    seen = _padded(semantic[first : first + layout.COARSE_INPUT], layout.COARSE_INPUT, layout.COARSE_PAD)
    now = known + done
    history = coarse[max(0, now - layout.COARSE_HISTORY) : now]
    return np.concatenate([seen, [layout.COARSE_INFER], history, coarse[now : now + size]]), size


def fine_loss(
    model: BarkFineModel, examples: Examples, rng: np.random.Generator, batch: int = 16
) -> tuple[Tensor, dict[str, float]]:
    """One codebook of one window: what comes before it is known, itself is padding where no window has filled it."""
    book = int(rng.integers(2, CODEBOOKS))
    inputs, targets = zip(*(fine_window(*examples.draw(rng), book, rng) for _ in range(batch)), strict=True)
    logits = model(book, torch.from_numpy(np.stack(inputs))).logits
    goal = torch.from_numpy(np.stack(targets))
    loss = F.cross_entropy(logits.flatten(0, 1), goal.flatten(), ignore_index=_IGNORED)
    return loss, {f"book{book}": loss.item()}


def fine_window(
    utterance: Utterance, before: Utterance | None, book: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Input (FINE_INPUT, CODEBOOKS) and targets (FINE_INPUT,) of one window of BarkFineModel.generate."""
    codes, known = utterance.codes.T, 0
    if before:
        history = before.codes.T[-layout.FINE_HISTORY :]
        codes, known = np.concatenate([history, codes]), len(history)
    length = max(len(codes), layout.FINE_INPUT)
    # Frames after the end have no coarse codes; their fine codes are always 0.
    tail = np.zeros((length - len(codes), CODEBOOKS), np.int64)
    tail[:, :2] = layout.FINE_PAD
    codes = np.concatenate([codes, tail])
    loops = max(0, -(-(len(utterance.codes.T) - (layout.FINE_INPUT - known)) // layout.FINE_HISTORY)) + 1
    turn = int(rng.integers(loops))
    start = min(turn * layout.FINE_HISTORY, length - layout.FINE_INPUT)
    fill = min(known + turn * layout.FINE_HISTORY, length - layout.FINE_HISTORY)
    # What the window before this one has filled is there still, until it is overwritten.
    filled = known if turn == 0 else min((turn - 1) * layout.FINE_HISTORY + layout.FINE_INPUT, length)
    inputs = codes[start : start + layout.FINE_INPUT].copy()
    inputs[max(0, filled - start) :, book] = layout.FINE_PAD
    targets = codes[start : start + layout.FINE_INPUT, book].copy()
    targets[: fill - start] = _IGNORED
    return inputs, targets


def _padded(tokens: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(tokens[:length], (0, max(0, length - len(tokens))), constant_values=value)


def _rows(rows: list[np.ndarray], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.from_numpy(np.stack([_padded(row, longest, value) for row in rows]).astype(np.int64))


@torch.no_grad()
def predict_fine(model: BarkFineModel, codes: list[np.ndarray], batch: int = 32) -> list[np.ndarray]:
    """Codes (CODEBOOKS, T) of utterances with the fine ones as the model gives them for the true coarse ones."""
    semantic, coarse, fine = layout.stage_configs({"semantic": 1.0, "coarse": 1.0, "fine": 1.0})
    predicted = list(codes)
    lengths = np.array([code.shape[1] for code in codes])
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    for group in tqdm(groups, desc="fine codes"):
        for part in np.array_split(group, -(-len(group) // batch)):
            known = np.stack([codes[i][:2].T + np.array([0, CODEBOOK_SIZE]) + SEMANTIC_TOKENS for i in part])
            flat = torch.from_numpy(known.reshape(len(part), -1).astype(np.int64))
            output = model.generate(flat, semantic, coarse, fine, codebook_size=CODEBOOK_SIZE)
            for i, row in zip(part, output.numpy(), strict=True):
                predicted[i] = row.astype(codes[i].dtype)
    return predicted
