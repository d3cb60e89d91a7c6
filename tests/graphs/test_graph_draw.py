"""Graphs of many tokens, whose sampler knows the device's noise, against one token after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, run
from support.philox import PhiloxGenerator

from bark_accel.decoding.graph_parts import split
from bark_accel.decoding.sampling import TokenRange
from bark_accel.ops.graph_draw import advance, states_after

Tokens = dict[str, torch.Tensor]


def tokens(model: Any, generator: PhiloxGenerator, **options: Any) -> tuple[Tokens, torch.Tensor]:
    generator.set_state(torch.tensor([11 << 33 | 5, 1 << 34]).view(torch.uint8))
    outputs, _, _ = run(model, 0, **options)
    return {stage: outputs[stage] for stage in ("semantic", "coarse", "fine")}, generator.get_state()


LONGEST = 90  # tokens of the semantic stage, where nothing ends it
OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "semantic_max_new_tokens": 31},
    "greedy": {"do_sample": False, "semantic_max_new_tokens": 31},
    "ends early": {"do_sample": True, "min_eos_p": 0.011},
    "edited": {"do_sample": True, "semantic_max_new_tokens": 31, "repetition_penalty": 1.3, "top_k": 20},
    "no end at first": {"do_sample": True, "min_eos_p": 0.011, "semantic_min_new_tokens": 11},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", ([6], [4, 9, 2]), ids=("one row", "three rows"))
def test_many_tokens_a_graph_are_one_after_the_other(
    small_model: Any,
    capturer: CallCapturer,
    generator: PhiloxGenerator,
    lengths: list[int],
    options: dict[str, Any],
) -> None:
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    fast = accelerated_copy(small_model, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, lengths), **options)
    for _ in range(2):  # captured, and replayed
        capturer.replayed = 0
        got, state_after = tokens(fast, generator, **texts(SMALL, lengths), **options)
        assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
        assert torch.equal(state_after, state)
    assert "min_eos_p" not in options or got["semantic"].shape[1] < LONGEST
    assert 0 < capturer.replayed < (got["semantic"].shape[1] + got["coarse"].shape[1]) / 2


def test_graphs_of_ranges_that_are_alike_or_take_turns() -> None:
    a, b = TokenRange(0, 5), TokenRange(5, 9)
    assert split([a] * 9, 4) == [(a,) * 4, (a,) * 4, (a,)]
    assert split([a, b] * 3, 4) == [(a, b, a, b), (a,), (b,)]
    assert split([a, a, a, b, b, b, b, b], 4) == [(a,), (a,), (a,), (b,) * 4, (b,)]
    assert split([a, b, a], 1) == [(a,), (b,), (a,)]


def test_states_follow_torchs_generator() -> None:
    state = torch.tensor([-3, 40]).view(torch.uint8)
    first, second = states_after(state, 2, advance(10048 * 200, torch.device("cpu")))
    assert first.view(torch.int64).tolist() == [-3, 44] and second.view(torch.int64).tolist() == [-3, 48]
