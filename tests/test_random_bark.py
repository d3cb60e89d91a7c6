"""Random models of suno's shapes, for measurements."""

from __future__ import annotations

import pytest
import torch

from bark_accel.bench import models


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.SHAPES, "tiny", {"num_layers": 1, "num_heads": 2, "hidden_size": 8})
    return "tiny"


def test_a_seed_gives_the_same_weights_and_no_generator_is_changed(tiny, monkeypatch):
    for owner, name in ((torch, "manual_seed"), (torch.random, "manual_seed"), (torch.cuda, "manual_seed_all")):
        monkeypatch.setattr(owner, name, lambda seed: pytest.fail("every device's generator was seeded"))
    state = torch.get_rng_state()
    one, same, other = (models.random_bark(tiny, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["semantic.lm_head.weight"], other["semantic.lm_head.weight"])
