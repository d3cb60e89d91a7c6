"""The paper model of a GPU's step counts what the kernels do, and never calls itself a measurement."""

import re
from pathlib import Path

from benchmarks.gpu import paper

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
GEMV = (CUDA / "gemv_params.cuh").read_text()


def constant(name: str) -> str:
    found = re.search(rf"static constexpr int {name} = ([^;]+);", GEMV)
    assert found, name
    return found.group(1)


def test_its_numbers_are_the_kernels() -> None:
    assert int(constant("kOutputs")) == paper.OUTPUTS
    assert int(constant("kThreads")) == paper.WARPS * paper.LANES
    assert constant("kBatch").endswith(f"? 2 : {paper.LOADS}")
    rings = re.search(r"kSizes\[\] = \{(.+), 0\};", (CUDA / "context.cuh").read_text())
    assert rings and tuple(map(int, rings.group(1).split(", "))) == paper.RINGS
    assert {shape.kernels for shape in paper.SHAPES} == {62, 122}


def test_its_floor_is_the_bytes_over_the_bandwidth() -> None:
    small = next(s for s in paper.SHAPES if s.name == "bark-small float16")
    card = paper.Card("one", 1e12 / paper.REACHED, 100, 227)
    cache = 12 * 2 * paper.CONTEXT * 768 * 2
    assert abs(paper.floor_s(small, card) - (2 * (12 * 12 * 768**2 + 10001 * 768) + cache) / 1e12) < 1e-12
    pairs = [(s, c) for s in paper.SHAPES for c in paper.CARDS]
    assert all(min(paper.step_s(s, c), paper.persistent_s(s, c)) > paper.floor_s(s, c) for s, c in pairs)


def test_a_slow_memory_hides_the_waits_of_a_launch_and_a_fast_one_shows_them() -> None:
    small = next(s for s in paper.SHAPES if s.name == "bark-small float16")
    slow, fast = (paper.Card("one", bandwidth, 132, 227) for bandwidth in (1e11, 1e15))
    assert paper.persistent_s(small, slow) < 1.02 * paper.floor_s(small, slow)
    waits = 61 * paper.BARRIER_S + 49 * paper.FILL_S + 12 * 3 * paper.LATENCY_S + paper.BARRIER_S + paper.DRAW_S
    instructions = sum(o * d for o, d in small.products()) * 2 / (small.rate * 132)
    assert abs(paper.persistent_s(small, fast) - waits - instructions) < 1e-8
    assert paper.Card("old", 1e12, 40, 64).ring_bytes(False) == 0
    assert (
        paper.Card("new", 1e12, 10, 227).ring_bytes(True) == 10 * 14 * 512 * 20
    )  # of 18 that would fit, the longest there is


def test_every_card_has_a_row_and_the_table_says_what_it_is() -> None:
    text = paper.table()
    assert "not a measurement" in text
    assert all(f"| {card.name} |" in text for card in paper.CARDS) and len(paper.CARDS) == 9


def test_the_page_has_the_figures_of_the_model() -> None:
    page = " ".join((CUDA.parents[1] / "docs" / "internals" / "cuda.md").read_text().split())
    cards, shapes = ({each.name: each for each in all_} for all_ in (paper.CARDS, paper.SHAPES))
    bark, rtx = shapes["bark float16"], cards["RTX 3090"]
    us = round(1e6 * paper.persistent_s(bark, rtx)), round(1e6 * paper.step_s(bark, rtx))
    assert f"({us[0]} us instead of {us[1]} for float16 on an RTX 3090)" in page
    batch = paper.OUTPUTS * paper.WARPS * paper.LANES * 16
    rings = [cards[name].ring_bytes(False) // cards[name].processors // batch for name in ("H100 SXM", "RTX 4090")]
    assert f"({rings[0]} batches of {batch // 1024} KiB on an H100, {rings[1]} on an RTX 4090)" in page
    # Five parts of a layer and the head: after the draw all wait once more.
    assert f"where {5 * shapes['bark-small int8'].layers + 1} waits for all blocks" in page
    saved, frames = paper.codec_graph()
    assert f"{paper.CODEC_KERNELS} kernels beside cuDNN's LSTM a graph would save {1e3 * saved:.2f} ms a call" in page
    assert f"{frames:.0f} frames more cost as much" in page
