"""The paper model of a GPU's step counts what the kernels do, and never calls itself a measurement."""

import re
from pathlib import Path

from benchmarks.gpu import paper

GEMV = (Path(__file__).parents[1] / "csrc" / "cuda" / "gemv.cuh").read_text()


def constant(name: str) -> str:
    found = re.search(rf"static constexpr int {name} = ([^;]+);", GEMV)
    assert found, name
    return found.group(1)


def test_its_numbers_are_the_kernels() -> None:
    assert int(constant("kOutputs")) == paper.OUTPUTS
    assert int(constant("kThreads")) == paper.WARPS * paper.LANES
    assert constant("kBatch").endswith(f"? 2 : {paper.LOADS}")
    assert {shape.kernels for shape in paper.SHAPES} == {62, 122}


def test_its_floor_is_the_bytes_over_the_bandwidth() -> None:
    small = next(s for s in paper.SHAPES if s.name == "bark-small float16")
    card = paper.Card("one", 1e12 / paper.REACHED, 100)
    cache = 12 * 2 * paper.CONTEXT * 768 * 2
    assert abs(paper.floor_s(small, card) - (2 * (12 * 12 * 768**2 + 10001 * 768) + cache) / 1e12) < 1e-12
    assert all(paper.step_s(s, c) > paper.floor_s(s, c) for s in paper.SHAPES for c in paper.CARDS)


def test_every_card_has_a_row_and_the_table_says_what_it_is() -> None:
    text = paper.table()
    assert "not a measurement" in text
    assert all(f"| {card.name} |" in text for card in paper.CARDS) and len(paper.CARDS) == 8
