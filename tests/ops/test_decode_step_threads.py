"""Threads of decode_step: how many there are changes no bit."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from support.decode_steps import WEIGHTS, results

from bark_accel.ops import _library

from .conftest import decode_inputs


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (1, 3), (5, 1), (1, 8), (16, 1)])
def test_threads_do_not_change_a_bit(
    isa: str, use_threads: Callable[[int], None], dtype: torch.dtype, rows: tuple[int, int]
) -> None:
    for width, heads in ((20, 2), (72, 3)):
        inputs = decode_inputs(*rows, width, heads, 21, dtype, bias=True)
        use_threads(1)
        expected = results(inputs)
        for threads in range(2, 9):
            use_threads(threads)
            for got, want in zip(results(inputs), expected, strict=True):
                assert torch.equal(got, want), f"{threads} threads differ from one at width {width}"


def test_threads_come_and_go(isa: str, use_threads: Callable[[int], None]) -> None:
    """A larger step after a smaller one, more threads than rows, columns or heads, and fewer again."""
    jobs = [decode_inputs(b, t, w, h, 9, dtype) for dtype in WEIGHTS for b, t, w, h in ((1, 1, 8, 1), (3, 4, 72, 3))]
    use_threads(1)
    expected = [results(job) for job in jobs]
    for threads in (3, 1, 11, 2, 7, 1, 2):
        use_threads(threads)
        for job, want in zip(jobs, expected, strict=True):
            assert all(map(torch.equal, results(job), want)), f"{threads} threads"


@pytest.mark.parametrize(("most", "first"), [(1, 1), (8, 2), (8, 8), (3, 0), (0, 0)])
def test_the_search_for_a_team_changes_no_bit(use_threads: Callable[[int], None], most: int, first: int) -> None:
    """While it tries other sizes, within its limits."""
    inputs = decode_inputs(1, 1, 72, 3, 21, torch.int8)
    use_threads(1)
    expected, library = results(inputs), _library.load()
    torch.set_num_threads(8)
    library.set_step_threads(fixed=0, start=first, most=most)
    sizes = []
    for _ in range(150):
        assert all(map(torch.equal, results(inputs), expected))
        sizes.append(library.last_step_threads())
    assert sizes[0] == (first or most or 8) and max(sizes) <= (most or 8)
    assert len(set(sizes)) > 1 or most in (1, 3), "expected a search with more than four threads"


def test_threads_that_decode_at_once(use_threads: Callable[[int], None]) -> None:
    """Each with a team of two."""
    use_threads(2)
    jobs = [decode_inputs(1 + i % 2, 1 + i % 3, 72, 3, 5 * i, WEIGHTS[i]) for i in range(4)]
    expected = [results(job) for job in jobs]
    wrong: list[int] = []

    def work(i: int) -> None:
        torch.set_num_threads(2)
        for _ in range(30):
            if not all(map(torch.equal, results(jobs[i]), expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
