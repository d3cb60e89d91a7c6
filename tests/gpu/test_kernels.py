"""The compiled ops against their references in plain torch, on the GPU (or the CPU: see conftest.py)."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding.rng import default_generator
from bark_accel.decoding.sampling import SampleRules, SamplingConfig, TokenRange
from bark_accel.ops import backend, device_check, graph_draw
from bark_accel.ops import reference as torch_ops
from bark_accel.ops._library import load
from bark_accel.ops.interface import StepCache, StepWeights
from bark_accel.ops.sample_checks import NOT_FINITE

# Fewer for a sanitizer, under which a kernel takes a hundred times as long.
SEEDS = range(int(os.environ.get("BARK_ACCEL_TEST_SEEDS", "20")))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RULES = [
    (SamplingConfig(True, 1, 0.7, 50, renormalize=True), TokenRange(0, 10000, 10000)),
    (SamplingConfig(True, 1, top_p=0.9, min_eos_p=0.2, renormalize=True), TokenRange(0, 10000, 10000)),
    (SamplingConfig(True, 1, 0.6), TokenRange(10000, 11024)),
    (SamplingConfig(True, 1, 1.3, 5, 0.5, 0.1), TokenRange(9, 40, 10)),
]


@pytest.mark.needs_gpu
def test_the_stream_is_the_current_one() -> None:
    side = torch.cuda.Stream()
    device = torch.cuda.current_device()
    assert load().cuda_stream(device) == torch.cuda.current_stream().cuda_stream
    with torch.cuda.stream(side):
        assert load().cuda_stream(device) == side.cuda_stream


def test_the_check_at_first_use_passes(native: Any, device: torch.device) -> None:
    """Without it every test of whole generations would be one of plain torch."""
    assert device_check.first_difference(native, torch_ops, device) is None
    assert backend.native_fault(device) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rules", [*([one] for one in RULES), [RULES[0], RULES[1]] * 4, [RULES[3], RULES[2]] * 4])
@pytest.mark.parametrize("rows", (1, 8))
def test_samplers_equal_their_twins(
    native: Any, device: torch.device, rules: list, dtype: torch.dtype, rows: int
) -> None:
    """One rule for all rows, or one for each."""
    first, end = min(r.begin for _, r in rules), max(r.head_rows.stop for _, r in rules)
    arguments = SampleRules.of(rules[:rows], device).arguments
    for seed in SEEDS:
        torch.manual_seed(seed)
        logits = (3 * torch.randn(rows, end - first, device=device)).to(dtype)
        noise = torch.empty(rows, end + 5, device=device).exponential_()
        for drawn in (noise, None):
            got = native.fused_sample(logits, drawn, first, *arguments[1:])
            assert torch.equal(got, torch_ops.fused_sample(logits, drawn, first, *arguments[1:]))


def test_multinomial_equals_torch_in_value_and_state(native: Any, device: torch.device) -> None:
    probabilities = torch.randn(4, 10048, device=device).softmax(1)
    for seed in SEEDS:
        torch.manual_seed(seed)
        expected, state = torch.multinomial(probabilities, 1).flatten(), default_generator(device).get_state()
        torch.manual_seed(seed)
        rules = SampleRules.of([(SamplingConfig(True, 1), TokenRange(0, 10048))], device)
        got = native.fused_multinomial(probabilities.log(), None, 10048, *rules.arguments)
        assert torch.equal(got, expected)
        assert torch.equal(default_generator(device).get_state(), state)


def test_a_generator_for_each_row_draws_as_for_that_row_alone(native: Any, device: torch.device) -> None:
    logits, generators = torch.randn(5, 10048, device=device), [torch.Generator(device) for _ in range(5)]
    rules = SampleRules.of([RULES[0]], device).arguments
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)
    for _ in range(3):
        got, states = [], [generator.get_state() for generator in generators]
        for row, generator in zip(logits, generators, strict=True):
            got.append(native.fused_multinomial(row[None, :10001], generator, 10048, *rules))
        after = [generator.get_state() for generator in generators]
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        together = native.fused_multinomial(logits[:, :10001], generators, 10048, *rules)
        assert torch.equal(together, torch.cat(got))
        assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, after, strict=True))
    logits[2, 7] = torch.nan
    for draw in (native.fused_multinomial, torch_ops.fused_multinomial):
        with pytest.raises(ValueError, match="got one in row 2"):
            draw(logits[:, :10001], generators, 10048, *rules)
        assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, after, strict=True))
    if device.type != "cpu":  # there, nobody waits
        unread = native.fused_multinomial(logits[:, :10001], generators, 10048, *rules, checked=False).tolist()
        assert unread[2] == -NOT_FINITE and min(unread[:2] + unread[3:]) >= 0


@pytest.mark.needs_gpu
def test_the_samplers_noise_is_torchs(native: Any, device: torch.device) -> None:
    """Else graphs hold one token and torch's draws: slower, with the same tokens."""
    assert graph_draw.follows_torch(device, native.draw_next)


def test_bad_logits_are_refused(native: Any, device: torch.device) -> None:
    logits = torch.randn(2, 8, device=device)
    logits[1, 3] = torch.nan
    with pytest.raises(ValueError, match="got one in row 1"):
        native.fused_sample(logits, None, 0, torch.tensor([[0, 8, -1]], device=device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_sum_equals_its_twin(native: Any, device: torch.device, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 1056, (2, 300, 8), device=device)
    tables = [torch.randn(1056, 768, device=device).to(dtype) for _ in range(8)]
    positions = torch.randn(1024, 768, device=device).to(dtype)
    got = native.codebook_embedding_sum(codes, tables, positions)
    torch.testing.assert_close(got, torch_ops.codebook_embedding_sum(codes, tables, positions))
    codes[1, 7, 2] = 1056
    if device.type == "cpu":
        with pytest.raises(ValueError, match="got 1056 in codebook 2, frame 7, batch row 1"):
            native.codebook_embedding_sum(codes, tables, positions)
        return
    expected = got.index_put((torch.tensor(1), torch.tensor(7)), torch.tensor(torch.nan))  # it does not look
    got = native.codebook_embedding_sum(codes, tables, positions)
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "batch, tokens, length", [(1, 1, 0), (1, 1, 1023), (8, 1, 600), (2, 8, 300), (1, 300, 0), (1, 60, 500)]
)
def test_attention_equals_its_twin(
    native: Any, device: torch.device, dtype: torch.dtype, batch: int, tokens: int, length: int
) -> None:
    query, key, value = torch.randn(3, batch, tokens, 12, 64, device=device).to(dtype)
    caches = torch.randn(2, batch, 12, 1024, 64, device=device).to(dtype)
    at = torch.tensor([length - i % 3 for i in range(batch)], device=device).clamp(min=0)
    expected_caches = caches.clone()
    got = native.static_cache_attention(query, key, value, *caches, at)
    expected = torch_ops.static_cache_attention(query, key, value, *expected_caches, at)
    torch.testing.assert_close(got, expected, atol=2e-5 if dtype is torch.float32 else 1e-2, rtol=1e-2)
    assert torch.equal(caches, expected_caches)


def decode_inputs(
    device: torch.device, dtype: torch.dtype, batch: int, tokens: int = 1, layers: int = 2, width: int = 768
) -> tuple[Tensor, StepWeights, StepCache]:
    """Arguments of decode_step with bark's head size and a context of 600."""

    def matrix(out: int, depth: int) -> list[Tensor | None]:
        weight = torch.randn(out, depth, device=device) / depth**0.5
        if dtype is not torch.int8:
            return [weight.to(dtype), None, None]
        scales = weight.unflatten(1, (-1, 64)).abs().amax(2) / 127
        return [(weight / scales.repeat_interleave(64, 1)).round().to(torch.int8), None, scales]

    def norm() -> list[Tensor | None]:
        return [1 + 0.1 * torch.randn(width, device=device), None]

    weights: list[Tensor | None] = []
    for _ in range(layers):
        weights += [*norm(), *matrix(3 * width, width), *matrix(width, width)]
        weights += [*norm(), *matrix(4 * width, width), *matrix(width, 4 * width)]
    head, _, scales = matrix(1072, width)
    cache_dtype = torch.float32 if dtype is torch.float32 else torch.float16
    caches = torch.randn(2, layers, batch, width // 64, 1024, 64, device=device).to(cache_dtype)
    table, positions = torch.randn(2, 1024, width, device=device)
    ids = torch.randint(0, 1024, (batch, tokens), device=device)
    length = torch.tensor([600 - 7 * i for i in range(batch)], device=device)
    eps = [1e-5] * (2 * layers + 1)
    assert head is not None
    step = StepWeights(table, positions, weights + norm(), eps, head, scales, width // 64)
    return ids, step, StepCache(caches[0], caches[1], length)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.int8))
@pytest.mark.parametrize("batch, tokens", [(1, 1), (3, 1), (8, 1), (16, 1), (1, 8)])
def test_decode_step_equals_its_twin(
    native: Any, device: torch.device, dtype: torch.dtype, batch: int, tokens: int
) -> None:
    ids, step, cache = decode_inputs(device, dtype, batch, tokens)
    expected = torch_ops.decode_step(ids, step, StepCache(*(t.clone() for t in cache)))
    got = native.decode_step(ids, step, cache)
    error = float((got - expected).norm() / expected.norm())
    assert error < (1e-5 if dtype is torch.float32 else 2e-2), error


@pytest.mark.usefixtures("captured")
def test_decode_step_in_a_graph_follows_ids_and_length(native: Any, device: torch.device) -> None:
    inputs = ids, step_weights, cache = decode_inputs(device, torch.float32, 1)
    captured = torch.empty(1, 1, len(step_weights.head), device=device)
    capturer = graphs.make_capturer(device)
    assert capturer is not None

    def step() -> None:
        captured.copy_(native.decode_step(*inputs))

    replay = capturer.capture(step, None)
    for position in (3, 600, 1023):
        ids.random_(0, 1024)
        cache.length.fill_(position)
        replay()
        torch.testing.assert_close(captured, native.decode_step(*inputs))


@pytest.mark.needs_gpu  # on the CPU it is an error at once
@pytest.mark.parametrize("what, bad", [("id", 1024), ("id", -1), ("length", 1024), ("length", -1)])
def test_an_id_or_length_that_does_not_fit_gives_nan(native: Any, device: torch.device, what: str, bad: int) -> None:
    ids, step, cache = decode_inputs(device, torch.float32, 1)
    (ids if what == "id" else cache.length).fill_(bad)
    keys, values = cache.keys.clone(), cache.values.clone()
    assert native.decode_step(ids, step, cache).isnan().all()
    if what == "length":
        assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)


@pytest.mark.needs_gpu
def test_dependent_launch_changes_nothing(native: Any, device: torch.device) -> None:
    inputs = decode_inputs(device, torch.float16, 1, layers=12)
    load().set_dependent_launch(False)
    try:
        expected = native.decode_step(*inputs)
    finally:
        load().set_dependent_launch(True)
    for _ in range(20):
        assert torch.equal(native.decode_step(*inputs), expected)


@pytest.mark.needs_gpu
@pytest.mark.parametrize("rows", (1, 2, 4))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.int8))
def test_one_kernel_a_step_gives_the_same_bits(
    native: Any, device: torch.device, dtype: torch.dtype, rows: int
) -> None:
    inputs = decode_inputs(device, dtype, rows, layers=12)
    expected = native.decode_step(*inputs)
    load().set_persistent_step(True)
    try:
        for _ in range(20):
            assert torch.equal(native.decode_step(*inputs), expected)
    finally:
        load().set_persistent_step(False)


@pytest.mark.needs_gpu
def test_two_threads_on_two_streams(native: Any, device: torch.device) -> None:
    inputs = [decode_inputs(device, torch.float32, 1) for _ in range(2)]
    expected = [native.decode_step(*arguments) for arguments in inputs]
    results: list[list[Tensor]] = [[], []]
    torch.cuda.synchronize()

    def work(i: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            results[i] = [native.decode_step(*inputs[i]) for _ in range(30)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert len(results[i]) == 30
        assert all(torch.equal(result, expected[i]) for result in results[i])
