from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from support.waiting import LIMIT_S

from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.spec import TransformerSpec

SPEC = TransformerSpec(num_layers=2, num_heads=3, width=24, block_size=16, output_vocab_size=9)
CPU = torch.device("cpu")


def borrow(pool, batch_size, dtype=torch.float32):
    return pool.borrow(SPEC, batch_size, dtype, CPU)


def test_a_smaller_batch_takes_a_slice_of_the_same_buffer():
    pool = KVCachePool()
    with borrow(pool, 4) as cache:
        assert cache.keys.shape == (2, 4, 3, 16, 8) and cache.capacity == 16
        pointer = cache.keys.data_ptr()
    with borrow(pool, 2) as cache:
        assert cache.keys.data_ptr() == pointer and cache.keys.shape[1] == 2
        assert cache.position == 0 and cache.length.tolist() == [0, 0]
    assert pool.nbytes == 2 * 2 * 4 * 3 * 16 * 8 * 4 + 4 * 8


def test_another_dtype_or_a_larger_batch_takes_a_new_buffer():
    pool = KVCachePool()
    with borrow(pool, 1):
        pass
    with borrow(pool, 1, torch.float16) as cache:
        assert cache.keys.dtype == torch.float16
    with borrow(pool, 3) as cache:
        assert cache.keys.shape[1] == 3


def test_two_borrowers_never_share():
    pool, pointers, barrier = KVCachePool(), [], threading.Barrier(2)

    def work():
        with borrow(pool, 1) as cache:
            pointers.append(cache.keys.data_ptr())
            barrier.wait(LIMIT_S)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pointers)) == 2


def test_a_failed_generation_gives_its_buffer_back():
    pool = KVCachePool()
    try:
        with borrow(pool, 1):
            raise RuntimeError("stop")
    except RuntimeError:
        pass
    assert pool.nbytes > 0
    pool.clear()
    assert pool.nbytes == 0


def test_copies_start_empty():
    pool = KVCachePool()
    with borrow(pool, 1):
        pass
    for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert twin.nbytes == 0
        with borrow(twin, 1):
            pass
        assert twin.nbytes == pool.nbytes


def test_advance_and_truncate_keep_host_and_device_together():
    with borrow(KVCachePool(), 1) as cache:
        cache.advance(5)
        assert cache.position == 5 and cache.length.tolist() == [5]
        cache.truncate(2)
        assert cache.position == 2 and cache.length.tolist() == [2]


@pytest.mark.parametrize("lend", ["a batch", "a row"])
def test_what_a_device_is_lent_has_no_nan_of_others(monkeypatch, lend):
    """Attention over a whole cache multiplies what lies behind the length by zero."""
    monkeypatch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)
    pool = KVCachePool()
    with borrow(pool, 3) as cache:
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    if lend == "a batch":
        with borrow(pool, 2) as lent:
            pass
    else:
        whole = KVCache.empty(SPEC, 3, torch.float32, CPU)
        whole.keys.fill_(torch.nan)
        whole.values.fill_(torch.nan)
        lent = whole.row(1)
        assert whole.keys[:, [0, 2]].isnan().all() and whole.values[:, [0, 2]].isnan().all(), "of nobody else"
    assert not lent.keys.any() and not lent.values.any()
