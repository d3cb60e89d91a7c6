"""Teacher-forced windows of coarse tokens are those that they were drawn in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.parity import accelerated_copy

from bark_accel.bench.coarse_windows import Spoken, long_window_distance, score_by, scores, spoken, windows
from bark_accel.bench.models import load_bark
from bark_accel.hf.voices import resolve_voice
from bark_accel.stages.coarse import CoarseStage
from benchmarks.speech.coarse_windows import LONG, Reference, Way, log_probabilities
from benchmarks.speech.quality import SHORT_HISTORY_TOKENS, with_coarse_history


@pytest.fixture(scope="module")
def reference():
    """With histories that leave room for two of stock's windows in a long one."""
    return Reference(with_coarse_history(load_bark().model.float(), SHORT_HISTORY_TOKENS))


def tensors(voice):
    return {name: torch.from_numpy(array) for name, array in voice.items()}


@pytest.mark.parametrize("options", [{}, LONG])
@torch.no_grad()
def test_windows_are_those_of_the_stage(reference, monkeypatch, options):
    prompts, open_window = [], CoarseStage._open_window

    def spy(self, state):
        fed = open_window(self, state)
        prompts.append(self.prompt_ids(state))
        return fed

    monkeypatch.setattr(CoarseStage, "_open_window", spy)
    semantic = torch.randint(0, 240, (1, 50), generator=torch.Generator().manual_seed(0))
    way = Way(options)
    coarse = reference.coarse(accelerated_copy(reference.stock, **options), way, semantic)
    fill = reference.stock.coarse_acoustics.config.block_size if options else None
    found = list(windows(replace(reference.spec, fill_positions=fill), Spoken(semantic, coarse)))
    assert len(found) == len(prompts) and len(found) == (2 if options else 5)
    assert all(torch.equal(window.prompt, prompt) for window, prompt in zip(found, prompts, strict=True))
    assert torch.equal(torch.cat([window.tokens for window in found], 1), coarse)


@torch.no_grad()
def test_scores_tell_what_is_likely(reference):
    """Greedy tokens are the best of their scores; our steps score as stock does."""
    semantic = torch.randint(0, 240, (1, 20), generator=torch.Generator().manual_seed(0))
    c = reference.configs
    coarse = reference.stock.coarse_acoustics.generate(
        semantic.clone(), c.semantic, c.coarse, codebook_size=c.codebook_size, do_sample=False
    )
    given = log_probabilities(reference.spec, reference.by_stock, semantic, coarse)
    assert torch.equal(given.argmax(-1), reference._codes(coarse))
    assert reference.surprise("stock", semantic, coarse) < reference.surprise("stock", semantic, coarse.roll(2, 1))
    ours = log_probabilities(reference.spec, reference.scorer("float16"), semantic, coarse)
    torch.testing.assert_close(ours, given, rtol=0, atol=0.05)
    assert reference.distance(Way(), semantic, coarse, given) == (0, 1)
    kl, same = reference.distance(Way(None, {"max_coarse_history": 8}), semantic, coarse, given)
    assert kl > 1e-3 and same < 1


@pytest.mark.parametrize("options", [{}, LONG])
@torch.no_grad()
def test_windows_after_a_voice_are_those_of_the_stage(reference, monkeypatch, options):
    """Prompts with a preset's tokens before the utterance's own."""
    prompts, open_window = [], CoarseStage._open_window
    loaded = load_bark()
    voice = resolve_voice(loaded.processor, "slt")

    def spy(self, state):
        fed = open_window(self, state)
        prompts.append(self.prompt_ids(state))
        return fed

    monkeypatch.setattr(CoarseStage, "_open_window", spy)
    c, pad = reference.configs, reference.configs.semantic.semantic_pad_token
    semantic = torch.randint(0, 240, (1, 50), generator=torch.Generator().manual_seed(0))
    semantic[0, 45:] = pad
    coarse = accelerated_copy(reference.stock, **options).coarse_acoustics.generate(
        semantic.clone(), c.semantic, c.coarse, codebook_size=c.codebook_size, history_prompt=tensors(voice)
    )
    fill = reference.stock.coarse_acoustics.config.block_size if options else None
    said = spoken(reference.stock, semantic, coarse, voice)
    assert said.semantic_history and said.coarse_history and torch.equal(said.drawn, coarse)
    found = list(windows(replace(reference.spec, fill_positions=fill), said))
    assert all(torch.equal(window.prompt, prompt) for window, prompt in zip(found, prompts, strict=True))
    assert torch.equal(torch.cat([window.tokens for window in found], 1), coarse)


@torch.no_grad()
def test_distance_of_long_windows(reference):
    """None in a single window; greedy tokens are the best in stock's windows and not always in long ones."""
    loaded, c = load_bark(), reference.configs
    voice = resolve_voice(loaded.processor, "slt")
    semantic = torch.randint(0, 240, (1, 60), generator=torch.Generator().manual_seed(0))
    coarse = reference.stock.coarse_acoustics.generate(
        semantic.clone(),
        c.semantic,
        c.coarse,
        codebook_size=c.codebook_size,
        history_prompt=tensors(voice),
        do_sample=False,
    )
    said = spoken(reference.stock, semantic, coarse, voice)
    given = scores(reference.spec, score_by(reference.stock.coarse_acoustics), said)
    assert torch.equal(given.argmax(-1), reference._codes(coarse))
    far = long_window_distance(reference.stock, said)
    assert far.relative_error > 1e-3 and far.kl_nats > 1e-4 and far.top_1_agreement < 1
    window = reference.spec.window_tokens
    first = spoken(reference.stock, semantic, coarse[:, :window], voice)
    near = long_window_distance(reference.stock, first)
    assert near.relative_error == near.kl_nats == 0 and near.top_1_agreement == 1
