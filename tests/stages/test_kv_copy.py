"""The 8-bit copy of a cache that drafts read: at every draft it is the cache, rounded."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, run

from bark_accel import BarkEngine
from bark_accel.decoding.speculation import Speculation
from bark_accel.ops.int8_entries import to_entries
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.kv_copy import KVCopy
from bark_accel.transformer.spec import TransformerSpec

SPEC = TransformerSpec(num_layers=2, num_heads=3, width=24, block_size=100, output_vocab_size=9)
CPU = torch.device("cpu")
OPTIONS = {"do_sample": True, "fine_temperature": 0.6, "semantic_max_new_tokens": 60}


def assert_rounded(copy: KVCache, source: KVCache) -> None:
    places = slice(0, source.position)
    assert copy.position == int(copy.length) == source.position
    if source.position == 0:
        return
    for got, expected in ((copy.keys, source.keys), (copy.values, source.values)):
        assert torch.equal(got[:, :, :, places], to_entries(expected[:, :, :, places], torch.int8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(moves=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 80), st.booleans()), min_size=1, max_size=8))
def test_it_follows_the_cache(dtype, moves):
    """Entries that were forgotten and written anew, as far as before or further, are copied again."""
    source, copy = KVCache.empty(SPEC, 1, dtype, CPU), KVCopy(SPEC, torch.int8, CPU)
    for kept, added, copied in moves:
        source.truncate(min(kept, source.position))
        end = min(source.position + added, source.capacity)
        for entries in (source.keys, source.values):
            entries[:, :, :, source.position : end].normal_()
        source.advance(end - source.position)
        if copied:
            drafts = copy.of(source)
            assert_rounded(drafts, source)
            drafts.keys[:, :, :, end:] = drafts.values[:, :, :, end:] = 77  # what a draft writes
            drafts.advance(source.capacity - end)
    assert_rounded(copy.of(source), source)


def test_another_cache_is_copied_from_the_start():
    copy = KVCopy(SPEC, torch.int8, CPU)
    for _ in range(2):
        source = KVCache.empty(SPEC, 1, torch.float32, CPU)
        source.keys.normal_(), source.values.normal_()
        source.advance(40)
        assert_rounded(copy.of(source), source)


@pytest.fixture
def drafts(monkeypatch):
    """Compare the copy with the cache whenever a round of drafts begins; and count the rounds."""
    rounds, real = [], Speculation._draft_cache

    def spy(self, cache):
        copy = real(self, cache)
        assert copy is not cache and copy.dtype == torch.int8
        assert_rounded(copy, cache)
        rounds.append(cache.position)
        return copy

    monkeypatch.setattr(Speculation, "_draft_cache", spy)
    return rounds


@pytest.mark.parametrize("weights", ["same", "float16"])
@pytest.mark.parametrize("history", [None, preset(SMALL, 60, 91)])
def test_in_a_generation(small_model, drafts, weights, history):
    """Coarse windows begin anew in the cache of the one before."""
    fast = accelerated_copy(small_model, weights=weights, speculate=True)
    run(fast, 0, **texts(SMALL, [5]), **OPTIONS, history_prompt=history)
    assert len(drafts) > 20 and any(b < a for a, b in itertools.pairwise(drafts))


def test_in_an_engine(small_model, drafts):
    """Rows that draft by themselves at times, and share steps at others."""
    fast = accelerated_copy(small_model, speculate=True)
    alone = []
    for seed in range(5):
        torch.manual_seed(seed)
        alone.append(fast.generate(**texts(SMALL, [4]), **OPTIONS)[0])
    drafts.clear()
    with BarkEngine(fast, max_rows=5) as engine:
        requests = [engine.submit(**texts(SMALL, [4]), **OPTIONS, seed=seed) for seed in range(5)]
        assert all(torch.equal(one.result(), its) for one, its in zip(requests, alone, strict=True))
    assert len(drafts) > 5


def test_an_int8_cache_is_shared(small_model):
    fast = accelerated_copy(small_model, speculate=True, kv_cache_dtype="int8")
    seen, real = [], Speculation._draft_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speculation, "_draft_cache", lambda self, cache: seen.append(real(self, cache) is cache) or cache)
        run(fast, 0, **texts(SMALL, [5]), **OPTIONS)
    assert seen and all(seen)
