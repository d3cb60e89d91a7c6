"""fused_sample against Transformers' own processors and torch.multinomial, with one generator state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    BarkEosPrioritizerLogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bark_accel.decoding.sampling import SampleRules, SamplingConfig, TokenRange
from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import rules

NEAR_TIE = 1e-5
"""Relative gap in p / noise, or distance of a probability from a threshold, where rounding may decide."""

CPU = torch.device("cpu")
BACKENDS = [ops.fused_sample, torch_ops.fused_sample]


@dataclass
class Case:
    logits: Tensor
    first_id: int
    begin: int
    end: int
    eos: int
    min_eos_p: float
    temperature: float
    top_k: int
    top_p: float

    def arguments(self) -> tuple:
        options = (self.min_eos_p, self.temperature, self.top_k, self.top_p)
        return rules(self.first_id, self.begin, self.end, self.eos, *options)

    def processors(self) -> LogitsProcessorList:
        width = self.logits.shape[1]
        allowed = {*range(self.begin, self.end)} | ({self.eos} if self.eos >= 0 else set())
        banned = [i for i in range(width) if i + self.first_id not in allowed]
        chain = LogitsProcessorList([SuppressTokensLogitsProcessor(banned)] if banned else [])
        if self.eos >= 0 and self.min_eos_p > 0:
            chain.append(BarkEosPrioritizerLogitsProcessor(self.eos - self.first_id, self.min_eos_p))
        return chain

    def warpers(self) -> LogitsProcessorList:
        chain = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chain.append(TopPLogitsWarper(self.top_p))
        return chain


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, width = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 17, 100, 300, 1100]))
    first_id = draw(st.sampled_from([0, 7]))
    begin = draw(st.integers(0, width - 1))
    end = draw(st.integers(begin + 1, width))
    eos = draw(st.one_of(st.just(-1), st.integers(first_id, first_id + width - 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    stride = draw(st.sampled_from([1, 2]))
    logits = torch.randn(rows * stride, width + 3, generator=generator)[::stride, :width]
    logits = logits * draw(st.sampled_from([0.1, 3.0, 20.0]))
    if draw(st.booleans()):  # many exact ties
        logits = logits.round()
    if draw(st.booleans()):
        logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3, float("-inf"))
        logits[:, begin] = 0.5
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return Case(
        logits.to(dtype),
        first_id,
        first_id + begin,
        first_id + end,
        eos,
        draw(st.sampled_from([0.0, 1e-4, 0.05, 0.5])),
        draw(st.sampled_from([1.0, 0.7, 0.013, 3.0])),
        draw(st.sampled_from([0, 1, 3, 50, 200, 5000])),
        draw(st.sampled_from([1.0, 0.95, 0.5, 0.01])),
    )


def stock_choice(case: Case, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Stock's ids, and how close each row was to another outcome (relative; inf when not sampling)."""
    scores = case.processors()(torch.empty(0), case.logits.float())
    margin = eos_margin(case, scores)
    if generator is None:
        return scores.argmax(-1) + case.first_id, margin
    final = case.warpers()(torch.empty(0), scores)
    if case.top_p < 1:
        margin = torch.minimum(margin, top_p_margin(case, scores))
    probabilities = final.log_softmax(-1).softmax(-1)
    state = generator.get_state()
    chosen = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    noise = torch.empty_like(probabilities).exponential_(generator=torch.Generator().set_state(state))
    race = (probabilities / noise).double()
    best = race.topk(min(2, race.shape[1]), dim=-1).values
    if best.shape[1] == 2:
        margin = torch.minimum(margin, 1 - best[:, 1] / best[:, 0])
    return chosen + case.first_id, margin


def eos_margin(case: Case, scores: Tensor) -> Tensor:
    if case.eos < 0 or case.min_eos_p == 0:
        return torch.full((len(scores),), float("inf"), dtype=torch.float64)
    allowed = Case(**{**case.__dict__, "min_eos_p": 0.0}).processors()(torch.empty(0), case.logits.float())
    probability = allowed.double().softmax(-1)[:, case.eos - case.first_id]
    return (probability / case.min_eos_p - 1).abs()


def top_p_margin(case: Case, scores: Tensor) -> Tensor:
    before = TemperatureLogitsWarper(case.temperature)(torch.empty(0), scores)
    if case.top_k:
        before = TopKLogitsWarper(case.top_k)(torch.empty(0), before)
    ordered = torch.sort(before).values
    cumulative = ordered.double().softmax(-1).cumsum(-1)
    removed = cumulative <= 1 - case.top_p
    removed[:, -1] = False
    # Stock's torch.sort is not stable on every CPU: which of several equal logits it keeps is not defined.
    cut_inside_a_tie = (removed[:, :-1] & ~removed[:, 1:] & (ordered[:, :-1] == ordered[:, 1:])).any(-1)
    return (cumulative - (1 - case.top_p)).abs().amin(-1).masked_fill(cut_inside_a_tie, 0.0)


def assert_same(got: Tensor, expected: Tensor, margin: Tensor) -> None:
    differs = got != expected
    assert not (differs & (margin > NEAR_TIE)).any(), (got, expected, margin)


@pytest.mark.parametrize("choose", BACKENDS, ids=["native", "torch"])
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), seed=st.integers(0, 2**31))
def test_same_token_and_generator_state_as_stock(choose, case: Case, seed: int) -> None:
    stock_generator, our_generator = (torch.Generator().manual_seed(seed) for _ in range(2))
    expected, margin = stock_choice(case, stock_generator)
    rows, width = case.logits.shape
    noise = torch.empty(rows, width).exponential_(generator=our_generator)
    shifted = torch.nn.functional.pad(noise, (case.first_id, 0), value=1.0)
    assert_same(choose(case.logits, shifted, *case.arguments()), expected, margin)
    assert torch.equal(stock_generator.get_state(), our_generator.get_state())


@pytest.mark.parametrize("choose", BACKENDS, ids=["native", "torch"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_greedy_equals_stock(choose, case: Case) -> None:
    expected, margin = stock_choice(case, None)
    assert_same(choose(case.logits, None, *case.arguments()), expected, margin)


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_semantic_and_fine_sizes_equal_the_twin(isa: str, top_k: int, top_p: float) -> None:
    for rows, width in ((2, 10048), (200, 1024)):
        logits = torch.randn(rows, width) * 3
        noise = torch.empty(rows, width).exponential_()
        arguments = (logits, noise, *rules(0, 0, width - 48, width - 48, 0.2, 0.7, top_k, top_p))
        agree = ops.fused_sample(*arguments) == torch_ops.fused_sample(*arguments)
        assert agree.sum() >= rows - 1  # at most one near tie


def test_top_p_ties_are_cut_by_index(isa: str) -> None:
    # Probabilities 1/4 each and 1 - top_p = 0.5 exactly: the stable order removes the first two.
    noise = torch.tensor([[0.1, 0.2, 0.5, 0.4]])
    assert ops.fused_sample(torch.zeros(1, 4), noise, *rules(0, 0, 4, top_p=0.5)).tolist() == [3]


def test_top_k_keeps_ties_at_the_kth(isa: str) -> None:
    noise = torch.tensor([[1.0, 1.0, 1e-3, 1.0]])
    assert ops.fused_sample(torch.tensor([[3.0, 2.0, 2.0, 1.0]]), noise, *rules(0, 0, 4, top_k=2)).tolist() == [2]


def test_top_k_beyond_the_partial_maxima(isa: str) -> None:
    logits, noise = torch.randn(2, 4000), torch.empty(2, 4000).exponential_()
    for top_k in (128, 129, 1000, 3999, 4000):
        arguments = (logits, noise, *rules(0, 0, 4000, top_k=top_k))
        assert torch.equal(ops.fused_sample(*arguments), torch_ops.fused_sample(*arguments))


def test_disallowed_logits_are_never_looked_at(isa: str) -> None:
    logits = torch.randn(1, 64)
    expected = ops.fused_sample(logits, None, *rules(0, 10, 20))
    logits[:, :10], logits[:, 20:] = float("nan"), float("inf")
    assert torch.equal(ops.fused_sample(logits, None, *rules(0, 10, 20)), expected)


@st.composite
def mixed_rows(draw: st.DrawFn) -> tuple[list[tuple[SamplingConfig, TokenRange]], int]:
    """Rules of some rows, and a seed: of each row its own, ids 7 to 106 in all."""
    rows, renormalize = [], draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(7, 106))
        allowed = TokenRange(
            begin, draw(st.integers(begin + 1, 107)), draw(st.one_of(st.just(-1), st.integers(7, 106)))
        )
        config = SamplingConfig(
            True,
            1,
            draw(st.sampled_from([1.0, 0.7, 3.0])),
            draw(st.sampled_from([0, 1, 5, 99])),
            draw(st.sampled_from([1.0, 0.9, 0.3])),
            draw(st.sampled_from([0.0, 0.02, 0.5])),
            renormalize,
        )
        rows.append((config, allowed))
    return rows, draw(st.integers(0, 2**31))


@pytest.mark.parametrize("choose", BACKENDS, ids=["native", "torch"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=mixed_rows(), greedy=st.booleans())
def test_a_row_with_its_own_rules_is_the_same_row_alone(isa: str, choose, case, greedy: bool) -> None:
    rows, seed = case
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), 100, generator=generator) * 3
    noise = None if greedy else torch.empty(len(rows), 110).exponential_(generator=generator)
    _, *rules_of_rows = SampleRules.of(rows, CPU).arguments
    together = choose(logits, noise, 7, *rules_of_rows)
    for n, row in enumerate(rows):
        _, *own = SampleRules.of([row], CPU).arguments
        alone = choose(logits[n : n + 1], None if noise is None else noise[n : n + 1], 7, *own)
        assert alone.tolist() == together[n : n + 1].tolist()


def test_rules_begin_with_the_smallest_id_of_any_row() -> None:
    config = SamplingConfig(True, 1)
    made = SampleRules.of([(config, TokenRange(9, 20)), (config, TokenRange(4, 8, 30))], CPU)
    assert made.first_id == 4 and made.allowed.tolist() == [[9, 20, -1], [4, 8, 30]]
    assert made.top_k is made.top_p is made.temperature is made.min_eos_p is None


def test_rules_of_rows_that_renormalize_and_others_are_refused() -> None:
    rows = [(SamplingConfig(True, 1, renormalize=r), TokenRange(0, 9)) for r in (False, True)]
    with pytest.raises(ValueError, match=r"renormalize: expected one value for all rows, got \[False, True\]"):
        SampleRules.of(rows, CPU)


def test_no_rows() -> None:
    assert ops.fused_sample(torch.empty(0, 8), None, *rules(0, 0, 8)).shape == (0,)
