"""Large pages of key-value caches, as Linux itself tells of them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from bark_accel.transformer import kv_cache
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.pages import ask_for_large_pages
from bark_accel.transformer.spec import TransformerSpec

SPEC = TransformerSpec(num_layers=2, num_heads=4, width=256, block_size=1024, output_vocab_size=9)
MAPS = Path("/proc/self/smaps")


def flags(address: int) -> list[str]:
    """The flags of the mapping that holds an address."""
    inside = False
    for line in MAPS.read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and ":" not in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"expected a mapping of {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux's large pages")
@pytest.mark.parametrize(("rows", "asked"), [(1, False), (16, True)])
def test_the_cache_of_a_batch_asks_for_large_pages(rows: int, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What malloc hands out again keeps the advice that it had: a mapping tells only that someone has asked."""
    advised = []
    monkeypatch.setattr(kv_cache, "ask_for_large_pages", lambda tensor: advised.append(ask_for_large_pages(tensor)))
    cache = KVCache.empty(SPEC, rows, torch.float32, torch.device("cpu"))
    assert advised == [True, True] * asked
    for tensor in (cache.keys, cache.values):
        assert not asked or "hg" in flags(tensor.data_ptr() + tensor.nbytes // 2)
        tensor.fill_(3.0)
        assert tensor.min() == tensor.max() == 3


def test_less_than_a_page_and_systems_without_such_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask_for_large_pages(torch.empty(1)) is False
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert ask_for_large_pages(torch.empty(1 << 20)) is False
