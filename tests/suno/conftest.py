from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.suno_package import Letters, import_suno, installed, random_models, save

import bark_accel.suno.generation as ours
from bark_accel.hf import suno_hub
from bark_accel.suno.sources import checkpoint_path


@pytest.fixture(scope="session")
def suno():
    """`bark.generation` of suno's package, with random models."""
    if not installed():
        pytest.skip("suno's package bark 0.1.5 is missing (pip install --no-deps bark==0.1.5; make test does)")
    generation = import_suno()
    generation.models = random_models()
    return generation


@pytest.fixture(scope="session")
def cache(suno, tmp_path_factory):
    """The folder of XDG_CACHE_HOME that holds the random models as suno's files."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for stage in ("text", "coarse", "fine"):
            model = suno.models[stage]
            save(checkpoint_path(stage, small=False), model["model"] if stage == "text" else model)
    return folder


@pytest.fixture(scope="session")
def loaded(suno, cache):
    """Our stages, loaded from these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(suno_hub, "load_tokenizer", Letters)
        patch.setattr(suno_hub, "load_codec", lambda: suno.models["codec"])
        ours.clean_models()
        ours.preload_models()
        stages = dict(ours.LOADED)
        ours.clean_models()
    return stages


@pytest.fixture
def both(suno, loaded):
    """A function that calls one function of suno's and ours with one seed; the results, and that all else is equal."""

    def call(name: str, *arguments, seed: int = 0, **options):
        results, states = [], []
        for module in (suno, ours):
            torch.manual_seed(seed)
            results.append(getattr(module, name)(*arguments, **options))
            states.append(torch.get_rng_state())
        expected, got = results
        assert got.dtype == expected.dtype and got.shape == expected.shape
        assert torch.equal(*states), "the generators end in different states"
        return expected, got

    ours.LOADED.update(loaded)
    yield SimpleNamespace(call=call, suno=suno, ours=ours)
    ours.clean_models()
