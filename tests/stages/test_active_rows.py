"""Ended rows leave the cache; the others keep their entries, wherever they have moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bark_accel.decoding.active_rows import ActiveRows
from bark_accel.transformer.kv_cache import KVCache


def cache_of(rows: int, position: int = 3) -> KVCache:
    """Every entry of a row is the row's number; what lies beyond the position is -1."""
    entries = torch.arange(rows, dtype=torch.float32).view(1, rows, 1, 1, 1).repeat(2, 1, 2, 5, 4)
    entries[:, :, :, position:] = -1
    return KVCache(entries, entries + 100, torch.full((rows,), position), position)


CASES = st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.sets(st.integers(0, n - 1)), max_size=4)))


@given(CASES)
def test_rows_that_end_one_after_the_other(case):
    batch_size, endings = case
    cache = cache_of(batch_size)
    rows = ActiveRows(cache, batch_size)
    active = [True] * batch_size
    values = torch.arange(batch_size)
    for ended in endings:
        following = [a and row not in ended for row, a in enumerate(active)]
        if not any(following):
            continue
        active = following
        rows.keep(active)
        held = rows.select(values)
        assert sorted(held.tolist()) == [row for row, a in enumerate(active) if a]
        assert cache.keys.shape[1] == cache.values.shape[1] == len(held)
        assert (cache.keys[:, :, :, :3] == held.view(1, -1, 1, 1, 1)).all()
        assert (cache.values[:, :, :, :3] == held.view(1, -1, 1, 1, 1) + 100).all()
        scores = rows.expand(held[:, None].float())
        assert [int(s) for s, a in zip(scores[:, 0], active, strict=True) if a] == sorted(held.tolist())
        assert scores.shape == (batch_size, 1) and scores.isfinite().all()


def test_nothing_is_copied_while_all_rows_go_on():
    cache = cache_of(3)
    rows = ActiveRows(cache, 3)
    rows.keep([True] * 3)
    values = torch.arange(3)
    assert rows.select(values) is values and rows.expand(values) is values


@pytest.mark.parametrize("row", [0, 1, 2])
def test_drop_row(row):
    cache = cache_of(3)
    keys = cache.keys
    cache.length += torch.arange(3)
    cache.drop_row(row)
    expected = [r for r in (0, 1, 2) if r != row] if row != 0 else [2, 1]
    assert cache.keys[0, :, 0, 0, 0].tolist() == expected
    assert cache.length.tolist() == [3 + r for r in expected]
    assert cache.keys.data_ptr() == keys.data_ptr() and cache.position == 3
