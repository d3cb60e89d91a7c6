"""Captures that are kept for the next call, renewed where something moved, and given up."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.waiting import LIMIT_S
from torch import nn

from bark_accel import acceleration_report
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding import step_captures
from bark_accel.decoding.sampling import Sampler, SampleRules

GRAPHED: dict[str, Any] = {"speculate": False}
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30}


def test_kept_for_the_next_call_and_renewed_for_what_is_new(small_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)

    def captures(rows: int, **options: Any) -> int:
        before = capturer.captured
        assert_equal_to_stock(small_model, fast, **texts(SMALL, [6, 3, 8][:rows]), **{**SAMPLED, **options})
        return capturer.captured - before

    assert captures(1) == 3  # semantic, and the two codebooks
    assert captures(1) == 0
    assert captures(1, semantic_max_new_tokens=21) == 0  # says nothing about a step
    assert captures(1, semantic_temperature=0.9) == 1
    assert captures(3) == 3  # and the cache grows
    assert captures(1) == 3  # so that one row is a slice of it
    assert captures(1) == 0 and captures(3) == 0
    assert acceleration_report(fast).captured_graphs == 3 * 3 + 1


def test_a_replaced_parameter_is_noticed(capturer: CallCapturer, small_model: Any) -> None:
    stock = copy.deepcopy(small_model)
    fast = accelerated_copy(stock, **GRAPHED)
    assert_equal_to_stock(stock, fast, **texts(SMALL, [6]), **SAMPLED)
    before = capturer.captured
    for model in (stock, fast):
        layer = model.semantic.layers[1].mlp.in_proj
        layer.weight = nn.Parameter(layer.weight.detach() * 1.5)
    assert_equal_to_stock(stock, fast, **texts(SMALL, [6]), **SAMPLED)
    assert capturer.captured == before + 1


def test_new_values_in_the_same_place_need_no_new_capture(capturer: CallCapturer, small_model: Any) -> None:
    stock = copy.deepcopy(small_model)
    fast = accelerated_copy(stock, **GRAPHED)
    before = run(fast, 0, **texts(SMALL, [6]), **SAMPLED)[0]["semantic"]
    captured = capturer.captured
    for model in (stock, fast):
        for parameter in (*model.semantic.parameters(), *model.coarse_acoustics.parameters()):
            parameter.data.copy_(parameter.data.roll(1, 0))
    after = assert_equal_to_stock(stock, fast, **texts(SMALL, [6]), **SAMPLED)["semantic"]
    assert capturer.captured == captured and not torch.equal(before, after)


def test_layernorms_of_a_16_bit_model_are_read_anew(capturer: CallCapturer, small_model: Any) -> None:
    """They are copies, and `.data` writes leave no version behind."""
    plain = accelerated_copy(copy.deepcopy(small_model).half(), cuda_graphs=False, **GRAPHED)
    fast = accelerated_copy(copy.deepcopy(small_model).half(), **GRAPHED)

    def tokens(model: Any) -> torch.Tensor:
        return run(model, 0, **texts(SMALL, [6]), **SAMPLED)[0]["semantic"]

    before = tokens(fast)
    captured = capturer.captured
    for model in (plain, fast):
        norm = model.semantic.layers[0].layernorm_1.weight
        norm.data.copy_(torch.linspace(-2, 2, len(norm)))
    assert torch.equal(tokens(fast), tokens(plain)) and not torch.equal(tokens(fast), before)
    assert capturer.captured == captured


@pytest.mark.parametrize("change", (lambda m: m.half(), lambda m: m.bfloat16()), ids=("half", "bfloat16"))
def test_another_dtype_is_captured_anew(capturer: CallCapturer, small_model: Any, change: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    plain = accelerated_copy(small_model, cuda_graphs=False, **GRAPHED)
    run(fast, 0, **texts(SMALL, [6]), **SAMPLED)
    captured = capturer.captured
    expected, got = (run(change(m), 0, **texts(SMALL, [6]), **SAMPLED)[0] for m in (plain, fast))
    assert all(torch.equal(got[stage], expected[stage]) for stage in ("semantic", "coarse", "fine"))
    assert capturer.captured == captured + 3


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_smaller_weights_are_kept_too(capturer: CallCapturer, small_model: Any, dtype: torch.dtype) -> None:
    model = copy.deepcopy(small_model).to(dtype)
    fast = accelerated_copy(model, weights="int8")
    plain = accelerated_copy(model, weights="int8", cuda_graphs=False)
    for captured in (3, 3):
        expected, got = (run(m, 1, **texts(SMALL, [6]), **SAMPLED)[0] for m in (plain, fast))
        assert torch.equal(got["coarse"], expected["coarse"])
        assert capturer.captured == captured


@torch.no_grad()
def test_what_a_graph_reads_of_its_sampler_lives_as_long_as_the_graph(
    small_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real graph holds addresses, no tensors."""

    class Forgetful:
        def capture(self, step: Callable[[], None], generator: torch.Generator | None) -> Callable[[], None]:
            step()
            return lambda: None

    made: list[weakref.ref] = []
    rules_of = Sampler.rules

    def spy(self: Sampler, *arguments: Any) -> SampleRules:
        rules = rules_of(self, *arguments)
        made.append(weakref.ref(rules))
        return rules

    monkeypatch.setattr(Sampler, "rules", spy)
    monkeypatch.setattr(graphs, "make_capturer", lambda device: Forgetful())
    fast = accelerated_copy(small_model, **GRAPHED)
    run(fast, 0, **texts(SMALL, [6]), do_sample=True, semantic_max_new_tokens=3, temperature=0.7)
    gc.collect()
    alive = {id(rules()) for rules in made} - {id(None)}
    assert len(alive) == acceleration_report(fast).captured_graphs == 3


def test_many_sampling_options_do_not_pile_up(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    for i in range(step_captures.MAX_GRAPHS + 3):
        run(fast, 0, **texts(SMALL, [6]), do_sample=True, semantic_max_new_tokens=3, temperature=0.5 + i / 10)
    assert acceleration_report(fast).captured_graphs == 2 * step_captures.MAX_GRAPHS


def test_many_batch_sizes_do_not_pile_up(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    for rows in range(graphs.MAX_KEPT + 2, 0, -1):
        run(fast, 0, **texts(SMALL, [6] * rows), do_sample=False, semantic_max_new_tokens=3)
    assert acceleration_report(fast).captured_graphs == 3 * graphs.MAX_KEPT


def test_a_wide_batch_is_captured_as_well(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    inputs = texts(SMALL, [3 + i % 4 for i in range(17)])
    assert_equal_to_stock(small_model, fast, **inputs, do_sample=True, semantic_max_new_tokens=4)
    assert capturer.captured == 3


def test_two_threads_capture_and_replay_their_own(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    options: dict[str, Any] = {"do_sample": False, "semantic_max_new_tokens": 30}
    inputs = [texts(SMALL, [5], seed=i) for i in range(2)]
    outputs: list[Any] = [None, None]
    started = threading.Barrier(2)

    def work(i: int) -> None:
        started.wait(LIMIT_S)
        for _ in range(3):
            outputs[i] = fast.generate(**{k: v.clone() for k, v in inputs[i].items()}, **options)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        alone = small_model.generate(**{k: v.clone() for k, v in inputs[i].items()}, **options)
        torch.testing.assert_close(outputs[i], alone, rtol=0, atol=1e-6)
