"""The examples that the small Bark learns from are laid out as stock's `generate` lays out its inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationMixin

from recipes.small_bark import assemble, data, gpt, layout, loop, vocabulary
from recipes.small_bark.data import Corpus
from recipes.small_bark.gpt import Utterance
from recipes.small_bark.tokens import CODEBOOK_SIZE, CODEBOOKS, SEMANTIC_TOKENS, Tokens

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


def test_nothing_held_out_is_learnt_from(monkeypatch):
    """Of any kind: also a row of words in any order may happen to be a phrase that is held out."""
    monkeypatch.setattr(data, "speak", lambda text, voice: np.zeros(1, np.float32))
    corpus = data.make(1)
    more = data.make_more(1, corpus)
    for part in (corpus, more):
        assert [vocabulary.split_of(text) for text in part.texts] == part.splits
    assert set(corpus.splits) == {"train", "dev"} and set(more.splits) == {"train"}
    spoken = list(zip(corpus.texts + more.texts, corpus.voices + more.voices, strict=True))
    assert len(set(spoken)) == len(spoken)
    longest = max(len(text.split()) for text in corpus.texts + more.texts + vocabulary.phrases())
    assert longest == vocabulary.LONGEST


def test_any_order_keeps_to_its_split(monkeypatch):
    held_out = next(text for text in vocabulary.phrases() if vocabulary.split_of(text) == "test")
    other = next(text for text in vocabulary.phrases() if vocabulary.split_of(text) == "train")
    rows = iter([held_out, other])
    monkeypatch.setattr(vocabulary, "_row", lambda rng, choices: next(rows))
    assert vocabulary.draw(None, "words", "train") == other


def test_presets_are_of_the_training_split(tmp_path):
    lengths = [70, 20, 80, 90, 65, 75]
    spoken = [utterance(length, seed) for seed, length in enumerate(lengths)]
    voices, splits = ["slt"] * 4 + ["rms"] * 2, ["dev", "train", "train", "train", "dev", "train"]
    corpus = Corpus([], [], voices, splits)
    tokens = Tokens([its.semantic for its in spoken], [its.codes for its in spoken], None, None)
    assemble.save_voices(corpus, tokens, tmp_path)
    for voice, chosen in (("slt", 2), ("rms", 5)):
        with np.load(tmp_path / f"speaker_embeddings/{voice}.npz") as preset:
            assert np.array_equal(preset["semantic_prompt"], spoken[chosen].semantic)
            assert np.array_equal(preset["fine_prompt"], spoken[chosen].codes)


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    spoken = [utterance(12, seed) for seed in range(4)]
    corpus = Corpus([], ["zero one two"] * 4, ["slt"] * 4, ["train"] * 4)
    tokens = Tokens([its.semantic for its in spoken], [its.codes for its in spoken], None, None)
    examples = gpt.Examples(corpus, tokens, "train")
    plan = loop.Plan(steps=3, rate=1e-3, weight_decay=0.1)
    gpt.train("semantic", examples, plan, tmp_path / "whole.pt", 1)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "semantic_loss", _killed_after(2, gpt.semantic_loss))
        with pytest.raises(KeyboardInterrupt):
            gpt.train("semantic", examples, plan, tmp_path / "killed.pt", 1)
    assert not loop.finished(tmp_path / "killed.pt", plan)
    gpt.train("semantic", examples, plan, tmp_path / "killed.pt", 1)
    assert loop.finished(tmp_path / "killed.pt", plan)
    whole, killed = (torch.load(tmp_path / f"{name}.pt", weights_only=True)["weights"] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def _killed_after(steps, loss):
    done = []

    def killed(*arguments):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(0)
        return loss(*arguments)

    return killed


def test_a_killed_stage_leaves_no_half_file(tmp_path, monkeypatch):
    def killed(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    corpus = Corpus([np.zeros(4, np.float32)], ["one"], ["slt"], ["train"])
    tokens = Tokens([np.zeros(1, int)], [np.zeros((CODEBOOKS, 2), int)], np.zeros(1), np.zeros(1))
    for name, result in (("data.npz", corpus), ("tokens.npz", tokens)):
        with pytest.raises(KeyboardInterrupt):
            result.save(tmp_path / name)
        assert not (tmp_path / name).exists()
    monkeypatch.undo()
    corpus.save(tmp_path / "data.npz")
    assert Corpus.load(tmp_path / "data.npz").texts == ["one"]
