"""fused_multinomial against Transformers' own processors and torch.multinomial: same token, same generator state."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.generation.logits_process import (
    BarkEosPrioritizerLogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange
from bark_accel.ops import multinomial
from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops
from bark_accel.ops._compiled import op
from bark_accel.ops.sample_checks import ALL_MASKED, NOT_FINITE

from .conftest import rules

VOCABULARIES = [1, 15, 16, 17, 1072, 10048, 12096]
OPTIONS = {
    "plain": {},
    "top_k": {"top_k": 50},
    "top_k_of_many": {"top_k": 700},
    "top_p": {"top_p": 0.8},
    "bark": {"top_k": 50, "top_p": 0.95, "min_eos_p": 0.2, "temperature": 0.7},
    "flat": {"temperature": 50.0},
}


@pytest.fixture(params=[True, False], ids=["lazy", "full"])
def lazy(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Runs the test with the noise computed where it matters, and in full."""
    assert multinomial.is_lazy(), "the lazy noise does not match this torch's"
    multinomial.set_lazy(request.param)
    yield request.param
    multinomial.set_lazy(True)


def prepared(seed: int, skipped: int = 0, randn: bool = False) -> torch.Generator:
    """A generator `skipped` words into its sequence, with a cached normal sample where wanted."""
    generator = torch.Generator().manual_seed(seed)
    if skipped:
        torch.randint(0, 2**16, (skipped,), generator=generator)  # one word each
    if randn:
        torch.randn(1, generator=generator)
        torch.randn(1, generator=generator, dtype=torch.float64)
    return generator


def stock(
    logits: Tensor,
    generator: torch.Generator | None,
    allowed: range,
    eos: int,
    top_k: int = 0,
    top_p: float = 1.0,
    min_eos_p: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    banned = sorted({*range(logits.shape[1])} - {*allowed, eos})
    chain = LogitsProcessorList([SuppressTokensLogitsProcessor(banned)] if banned else [])
    if min_eos_p:
        chain.append(BarkEosPrioritizerLogitsProcessor(eos, min_eos_p))
    chain.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    probabilities = chain(torch.empty(0), logits).log_softmax(-1).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_same_token_and_generator_state_as_stock(isa: str, lazy: bool, vocab_size: int, options: dict) -> None:
    begin, end = vocab_size // 9, max(1, vocab_size - vocab_size // 20)
    for seed in range(6):
        eos = (-1, vocab_size - 1, 0)[seed % 3] if not options.get("min_eos_p") else (vocab_size - 1, 0)[seed % 2]
        for rows in (1, 2, 5):
            logits = torch.randn(rows, vocab_size) * 3
            # Fresh, inside a block, at and around its end (624 words), with the caches of randn.
            skipped = (0, 1, 311, 623, 624, 625)[seed]
            theirs, ours = (prepared(seed, skipped, randn=seed % 2 == 1) for _ in range(2))
            for _ in range(2):
                expected = stock(logits, theirs, range(begin, end), eos, **options)
                first = min(begin, eos) if eos >= 0 else begin
                got = ops.fused_multinomial(
                    logits[:, first:], ours, vocab_size, *rules(first, begin, end, eos, **options)
                )
                assert got.tolist() == expected.tolist()
                assert torch.equal(ours.get_state(), theirs.get_state())


def test_every_position_in_a_block(isa: str) -> None:
    logits = torch.randn(1, 300)
    for skipped in range(0, 1250):
        theirs, ours = prepared(3, skipped), prepared(3, skipped)
        noise = torch.empty(1, 300).exponential_(generator=theirs)
        assert torch.equal(
            ops.fused_multinomial(logits, ours, 300, *rules(0, 0, 300)),
            ops.fused_sample(logits, noise, *rules(0, 0, 300)),
        )
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("top_k", [0, 50])
def test_equals_full_noise_whatever_the_distribution(isa: str, scale: float, top_k: int) -> None:
    """Same kernel, so bit for bit: no near tie is excused."""
    theirs, ours = prepared(0), prepared(0)
    for renormalize in (True, False):
        logits = torch.randn(400, 1000) * scale
        noise = torch.empty(400, 1000).exponential_(generator=theirs)
        options = {"top_k": top_k, "renormalize": renormalize}
        expected = ops.fused_sample(logits, noise, *rules(0, 20, 990, 5, **options))
        assert torch.equal(ops.fused_multinomial(logits, ours, 1000, *rules(0, 20, 990, 5, **options)), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_the_default_generator_is_the_one_of_stock(lazy: bool) -> None:
    logits = torch.randn(2, 1072)
    for draw in (ops.fused_multinomial, torch_ops.fused_multinomial):
        torch.manual_seed(5)
        expected, state = stock(logits, None, range(1072), -1), torch.get_rng_state()
        torch.manual_seed(5)
        assert torch.equal(draw(logits, None, 1072, *rules(0, 0, 1072)), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_an_eos_that_has_priority_still_draws(isa: str, lazy: bool) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 99] = 20
    theirs, ours = prepared(0), prepared(0)
    options = {"min_eos_p": 0.5}
    expected = stock(logits, theirs, range(90), 99, **options)
    got = ops.fused_multinomial(logits, ours, 100, *rules(0, 0, 90, 99, **options))
    assert got.tolist() == expected.tolist() == [99]
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("backend", [ops, torch_ops], ids=["native", "torch"])
def test_the_sampler_draws_only_when_sampling(backend: Any) -> None:
    logits, allowed = torch.randn(2, 1072), TokenRange(0, 1072)
    for do_sample in (False, True):
        sampler = Sampler(SamplingConfig(do_sample, 1), 1072, backend)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        expected = stock(logits, None, range(1072), -1) if do_sample else logits.argmax(-1)
        after = torch.get_rng_state()
        torch.manual_seed(5)
        assert torch.equal(sampler.draw(logits, allowed), expected)
        assert torch.equal(torch.get_rng_state(), after)
        assert torch.equal(before, after) != do_sample


def test_no_rows_draw_nothing(lazy: bool) -> None:
    generator = prepared(0)
    state = generator.get_state()
    assert ops.fused_multinomial(torch.empty(0, 8), generator, 8, *rules(0, 0, 8)).shape == (0,)
    assert torch.equal(generator.get_state(), state)


def test_refused_arguments_draw_nothing(lazy: bool) -> None:
    generator = prepared(0)
    state = generator.get_state()
    with pytest.raises(ValueError, match="vocab_size"):
        ops.fused_multinomial(torch.randn(1, 8), generator, 7, *rules(0, 0, 8))
    assert torch.equal(generator.get_state(), state)


def test_threads_share_a_generator(lazy: bool) -> None:
    """Draws of one size in any order: what each gets is one of the sequential draws, none twice."""
    logits, draws = torch.zeros(1, 10048), 40
    theirs, ours = prepared(1), prepared(1)
    expected = [int(stock(logits, theirs, range(10048), -1)) for _ in range(draws)]

    def draw(_: int) -> int:
        return int(ops.fused_multinomial(logits, ours, 10048, *rules(0, 0, 10048)))

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(draw, range(draws)))
    assert sorted(got) == sorted(expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


DRAWS = {"native": ops.fused_multinomial, "torch": torch_ops.fused_multinomial}


def of_each(count: int) -> list[torch.Generator]:
    """Generators at and around the ends of their blocks."""
    return [prepared(seed, (0, 1, 311, 623, 624, 625)[seed % 6], randn=seed % 2 == 1) for seed in range(count)]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("count", [1, 2, 9, 33])
def test_rows_with_a_generator_each(draw: Callable[..., Tensor], count: int, isa: str, lazy: bool) -> None:
    """Each row, of its own rules, and each generator are as if drawn for alone."""
    logits = torch.randn(count, 1072) * 3
    ranges = [[i % 7, 1000 + i, 1071 if i % 2 else -1] for i in range(count)]
    temperature, top_k = torch.linspace(0.5, 1.5, count, dtype=torch.float64), torch.arange(count) * 5
    theirs, ours = of_each(count), of_each(count)
    for _ in range(2):
        expected = [
            int(draw(row[None], one, 1100, 0, torch.tensor([ids]), None, heat[None], most[None]))
            for row, one, ids, heat, most in zip(logits, theirs, ranges, temperature, top_k, strict=True)
        ]
        got = draw(logits, ours, 1100, 0, torch.tensor(ranges), None, temperature, top_k)
        assert got.tolist() == expected
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_refused_row_leaves_the_generators_of_all(draw: Callable[..., Tensor], lazy: bool) -> None:
    logits, generators = torch.randn(3, 64), of_each(3)
    before = [one.get_state() for one in generators]
    logits[1, 5] = torch.nan
    with pytest.raises(ValueError, match=r"without NaN .* got one in row 1"):
        draw(logits, generators, 64, *rules(0, 0, 64))
    for one, state in zip(generators, before, strict=True):
        assert torch.equal(one.get_state(), state)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_that_wait_for_no_device(draw: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU stands in for it. Rows that cannot be sampled have their status as an id, and harm no other row."""
    monkeypatch.setattr(multinomial, "is_lazy", lambda: False)
    logits, allowed = torch.randn(4, 64), rules(0, 3, 40)
    expected = draw(logits, of_each(4), 64, *allowed)
    logits[1, 5], logits[3, 3:40] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match="got one in row 1"):
        draw(logits, of_each(4), 64, *allowed, checked=False)  # on a CPU, nobody has to wait
    monkeypatch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)
    ids = draw(logits, of_each(4), 64, *allowed, checked=False)
    assert ids.tolist() == [expected[0], -NOT_FINITE, expected[2], -ALL_MASKED]
    with pytest.raises(ValueError, match="got one in row 1"):
        draw(logits, of_each(4), 64, *allowed)


def test_the_unchecked_op_takes_tensors_without_data() -> None:
    allowed = torch.empty(1, 3, dtype=torch.int64, device="meta")
    ids = op("fused_sample.unchecked")(torch.empty(3, 64, device="meta"), None, 0, allowed)
    assert ids.is_meta and ids.shape == (3,) and ids.dtype == torch.int64


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_generators_that_are_no_good(draw: Callable[..., Tensor], lazy: bool) -> None:
    logits, (one, two) = torch.randn(2, 64), of_each(2)
    for wrong in ([one], [one, one], [one, two, prepared(3)], []):
        with pytest.raises(ValueError, match="one generator for all rows, or 2 that differ, one for each, got"):
            draw(logits, wrong, 64, *rules(0, 0, 64))
    for wrong in ([one, None], "ab"):
        with pytest.raises(ValueError, match=r"expected a torch\.Generator for each row, got (NoneType|str, str)"):
            draw(logits, wrong, 64, *rules(0, 0, 64))
    with pytest.raises(ValueError, match="expected vocab_size >= 64"):
        draw(logits, [one, two], 63, *rules(0, 0, 64))
    assert draw(logits[:0], [], 64, *rules(0, 0, 64)).shape == (0,)


def test_one_state_for_two_rows_is_refused() -> None:
    state = prepared(0).get_state()
    with pytest.raises(ValueError, match="fused_multinomial: expected states that differ, got one twice"):
        op("fused_multinomial.states")(torch.randn(2, 64), [state, state], 64, *rules(0, 0, 64))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_an_interrupted_draw_keeps_no_lock(several: bool) -> None:
    logits, generators = torch.zeros(2, 2000), of_each(2)
    chance, before = random.Random(0), signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(600):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 5e-4))
                while True:
                    given = generators if several else generators[0]
                    ops.fused_multinomial(logits, given, 2000, *rules(0, 0, 2000))
            assert not any(lock.locked() for lock in multinomial._locks)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_the_noise_of_each_is_given_back_if_what_follows_fails(error: type) -> None:
    generators = of_each(3)
    with pytest.raises(error), multinomial.noise_of_each(generators, 100, torch.device("cpu")):
        raise error
    for one, other in zip(generators, of_each(3), strict=True):
        assert torch.equal(one.get_state(), other.get_state())


def test_threads_share_some_of_their_generators(lazy: bool) -> None:
    logits, draws, generators = torch.zeros(2, 10048), 20, of_each(3)
    pairs = [[generators[i % 3], generators[(i + 1) % 3]] for i in range(3 * draws)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: ops.fused_multinomial(logits, pair, 10048, *rules(0, 0, 10048)), pairs))
    for one, other in zip(generators, of_each(3), strict=True):
        ops.fused_multinomial(torch.zeros(2 * draws, 10048), other, 10048, *rules(0, 0, 10048))
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a generator of another device")
@pytest.mark.parametrize("draw", [ops.fused_multinomial, torch_ops.fused_multinomial], ids=["native", "torch"])
def test_refuses_a_generator_of_another_device(draw: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"fused_multinomial: expected a generator on the cpu, got cuda"):
        draw(torch.randn(1, 8), torch.Generator("cuda"), 8, *rules(0, 0, 8))


@pytest.mark.parametrize("vocab_size", [2**63 - 1, 2**62, 2**61, 2**40, 2**31 // 4 + 1])
@pytest.mark.parametrize("lazy", [True, False])
def test_more_numbers_than_can_be_drawn(vocab_size: int, lazy: bool) -> None:
    """Refused before any is: their count would wrap around."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    multinomial.set_lazy(lazy)
    try:
        with pytest.raises(ValueError, match=r"expected at most 2147483648 numbers to draw, got 4 rows of"):
            ops.fused_multinomial(torch.randn(4, 64), generator, vocab_size, 0, torch.tensor([[0, 64, -1]]))
    finally:
        multinomial.set_lazy(True)
    assert torch.equal(generator.get_state(), before)


def test_without_data() -> None:
    """As torch.compile asks for it."""
    with FakeTensorMode():
        picked = ops.fused_multinomial(torch.empty(3, 64), None, 100, 0, torch.empty(1, 3, dtype=torch.int64))
    assert picked.shape == (3,) and picked.dtype == torch.int64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_lock_that_a_thread_held_at_a_fork() -> None:
    generator = torch.Generator().manual_seed(0)
    lock = multinomial._locks[id(generator) // 64 % len(multinomial._locks)]
    with lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
        if child == 0:
            free = multinomial._locks[id(generator) // 64 % len(multinomial._locks)].acquire(timeout=5)
            os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0
