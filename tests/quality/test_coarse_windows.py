"""Teacher-forced windows of coarse tokens are those that they were drawn in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.parity import accelerated_copy

from bark_accel.bench.models import load_bark
from bark_accel.stages.coarse import CoarseStage
from benchmarks.speech.coarse_windows import LONG, Reference, Way, scores, windows


@pytest.fixture(scope="module")
def reference():
    return Reference(load_bark().model.float())


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
    found = list(windows(replace(reference.spec, fill_positions=fill), semantic, coarse))
    assert len(found) == len(prompts) and len(found) == (3 if options else 5)
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
    given = scores(reference.spec, reference.by_stock, semantic, coarse)
    assert torch.equal(given.argmax(-1), reference._codes(coarse))
    assert reference.surprise("stock", semantic, coarse) < reference.surprise("stock", semantic, coarse.roll(2, 1))
    ours = scores(reference.spec, reference.scorer("float16"), semantic, coarse)
    torch.testing.assert_close(ours, given, rtol=0, atol=0.05)
    assert reference.distance(Way(), semantic, coarse, given) == (0, 1)
    kl, same = reference.distance(Way(None, {"max_coarse_history": 8}), semantic, coarse, given)
    assert kl > 1e-3 and same < 1
