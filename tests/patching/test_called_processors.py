"""A caller's processors, called by our own loop: as often, in the same order and with the same ids as in stock."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, stage_configs, texts
from support.callers_processors import needs_stocks_loop, stock_with, streamed
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, run
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.logits_process import BarkEosPrioritizerLogitsProcessor as EosPrioritizer
from transformers.generation.streamers import BaseStreamer

from bark_accel import AudioStreamer, acceleration_report, stream
from bark_accel.decoding.speculation import Speculation
from bark_accel.hf.compat import run_with_loop
from bark_accel.patches.resolve import _read_warpers, _Unread
from bark_accel.report import FallbackKind
from bark_accel.stages.semantic import SemanticStage

ALONE, TWO = texts(SMALL, [7]), texts(SMALL, [4, 9])
KIND = FallbackKind.LOGITS_PROCESSOR.value
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30, "fine_temperature": 0.7}


class Counting:
    """Allows other ids at each call: what it does depends on how often it was called."""

    def __init__(self, ids: int) -> None:
        self._ids = ids
        self.calls: list[tuple[int, list[int]]] = []

    def __call__(self, row: int, ids: torch.Tensor) -> list[int]:
        self.calls.append((row, ids.tolist()))
        return [i for i in range(self._ids) if (i + len(self.calls)) % 5]


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
@pytest.mark.parametrize("inputs", [ALONE, TWO], ids=["one row", "two rows"])
def test_the_calls_are_stocks(small_model, inputs, stage):
    """With drafts, some of which it makes wrong; of two rows, one ends before the other."""
    ids = {"semantic": SMALL.semantic_vocab + 1, "coarse": 237}[stage]
    fast, counting = accelerated_copy(small_model, speculate=True), [Counting(ids), Counting(ids)]
    options = {**inputs, **SAMPLED, "min_eos_p": 0.02}
    expected, got = (
        run(model, 4, **options, **{f"{stage}_prefix_allowed_tokens_fn": own})
        for model, own in zip((small_model, fast), counting, strict=True)
    )
    assert_same_run(expected, got)
    assert counting[0].calls == counting[1].calls
    drafts = acceleration_report(fast).stages[0 if stage == "semantic" else 1].drafts
    if inputs is ALONE:
        assert 0 < drafts.accepted_tokens < drafts.drafted_tokens
    elif stage == "semantic":
        assert sorted((expected[0]["semantic"] == SMALL.semantic_vocab).any(1).tolist()) == [False, True]


class Stops(BaseStreamer):
    """Leaves after so many tokens."""

    def __init__(self, tokens: int):
        self._left = tokens + 1  # and the prompt

    def put(self, value: torch.Tensor) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


def test_nothing_was_called_or_drawn_for_tokens_that_nobody_heard(small_model):
    """Also where a listener leaves in the middle of a round of drafts."""
    left = []
    for model in (small_model, accelerated_copy(small_model, speculate=True)):
        counting = Counting(SMALL.semantic_vocab)
        torch.manual_seed(1)
        with pytest.raises(KeyboardInterrupt):
            options = {"semantic_streamer": Stops(12), "semantic_prefix_allowed_tokens_fn": counting}
            model.generate(**ALONE, **SAMPLED, **options)
        left.append((counting.calls, torch.get_rng_state().tolist()))
    assert left[0] == left[1] and len(left[0][0]) == 12


class Lifting(LogitsProcessor):
    """Lifts another third of the ids at each call, and notes what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append((input_ids.clone(), scores.clone()))
        scores[:, len(self.calls) % 3 :: 3] += 2  # in place, as it may
        return scores


def stock_semantic(model: Any, processor: LogitsProcessor) -> torch.Tensor:
    """Stock's semantic stage with a processor behind Bark's own, which `BarkModel.generate` has no argument for."""

    def loop(module: Any, input_ids: torch.Tensor, logits_processor: Any, **prepared: Any) -> Any:
        last = next(i for i, p in enumerate(logits_processor) if type(p) is EosPrioritizer)
        logits_processor.insert(last + 1, processor)
        return type(module)._sample(module, input_ids, logits_processor=logits_processor, **prepared)

    config = stage_configs(model)["semantic_generation_config"]
    options = {"do_sample": True, "max_new_tokens": 30, "min_eos_p": None, "top_k": 40, "temperature": 0.9}
    return run_with_loop(
        type(model.semantic).generate, model.semantic, loop, ALONE["input_ids"], config, None,
        ALONE["attention_mask"], **options,
    )  # fmt: skip


def test_a_streams_processor_sees_what_it_sees_behind_barks_rules(small_model):
    """Ids, scores and draws, with drafts: interleaved with nothing, the semantic stage is stock's."""
    fast, lifting = accelerated_copy(small_model, speculate=True), [Lifting(), Lifting()]
    torch.manual_seed(2)
    stock_semantic(small_model, lifting[0])
    torch.manual_seed(2)
    options = {"do_sample": True, "semantic_max_new_tokens": 30, "semantic_top_k": 40, "semantic_temperature": 0.9}
    assert list(stream(fast, **ALONE, **options, semantic_logits_processor=[lifting[1]]))
    for (ids, scores), (own_ids, own_scores) in zip(lifting[0].calls, lifting[1].calls, strict=True):
        assert torch.equal(own_ids, ids) and own_ids.dtype == ids.dtype
        torch.testing.assert_close(own_scores, scores, rtol=1e-5, atol=1e-5)
    drafts = acceleration_report(fast).stages[0].drafts
    assert 0 < drafts.accepted_tokens < drafts.drafted_tokens


def test_only_what_depends_on_its_arguments_alone_is_called_for_drafts(small_model, monkeypatch):
    """Transformers' own classes are; a caller's class is not, though it may be called like one of them."""
    drafting, seen = [False], []
    real = Speculation._draft_tokens

    def draft_tokens(self, *args):
        drafting[0] = True
        tokens = real(self, *args)
        drafting[0] = False
        return tokens

    class AlternatingOfACaller(AlternatingCodebooksLogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(drafting[0])
            return scores

    monkeypatch.setattr(Speculation, "_draft_tokens", draft_tokens)
    fast = accelerated_copy(small_model, speculate=True)
    own = AlternatingOfACaller(1, 100, 64)
    assert list(stream(fast, **ALONE, **SAMPLED, semantic_logits_processor=[own], semantic_no_repeat_ngram_size=2))
    assert len(seen) == 30 and not any(seen)
    drafts = acceleration_report(fast).stages[0].drafts
    assert drafts.accepted_tokens > drafts.drafted_tokens / 2


@pytest.mark.parametrize("top_k", [20, 0], ids=["few", "all"])
@pytest.mark.parametrize("option", [{"typical_p": 0.7}, {"eta_cutoff": 0.5}, {"min_p": 0.3}], ids=str)
def test_warpers_of_few_and_of_all_candidates(small_model, option, top_k):
    """Each decides tokens; where a top k has left few, some are made to work on those."""
    fast, options = accelerated_copy(small_model), {**TWO, **SAMPLED, "top_k": top_k}
    tokens = assert_equal_to_stock(small_model, fast, **options, **option)["coarse"]
    plain = run(small_model, 0, **options)[0]["coarse"]
    assert tokens.shape != plain.shape or not torch.equal(tokens, plain)


class Embedded(LogitsProcessor):
    """Has a module of its own, which is not the model."""

    def __init__(self) -> None:
        self.scorer = torch.nn.Embedding(4, 4)

    def __call__(self, input_ids, scores):
        return scores


class Slotted:
    """A callable without a `__dict__`."""

    __slots__ = ()

    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize("processor", [Embedded(), Slotted()], ids=lambda p: type(p).__name__)
def test_what_a_caller_s_processor_holds_is_its_own_business(small_model, processor):
    fast = accelerated_copy(small_model, strict=True)
    assert list(stream(fast, **ALONE, semantic_max_new_tokens=8, semantic_logits_processor=[processor]))
    assert acceleration_report(fast).fallbacks == ()


@pytest.mark.parametrize("warper", [TopKLogitsWarper, TopPLogitsWarper])
def test_a_warper_that_fills_with_another_score_is_called(warper):
    value = 5 if warper is TopKLogitsWarper else 0.5
    assert _read_warpers([warper(value)], []) in ({"top_k": 5}, {"top_p": 0.5})
    with pytest.raises(_Unread):
        _read_warpers([warper(value, filter_value=-3.0)], [])


@pytest.mark.parametrize("tokens", [16, 20])
def test_an_end_is_forced_where_stock_forces_it(small_model, tokens):
    """In the last token of each coarse window, the last window's included, which is a shorter one."""
    fast = accelerated_copy(small_model)
    options = {**ALONE, "do_sample": False, "semantic_min_new_tokens": tokens, "semantic_max_new_tokens": tokens}
    coarse = assert_equal_to_stock(small_model, fast, **options, coarse_forced_eos_token_id=180)["coarse"]
    assert coarse[0, -1] == 180 and acceleration_report(fast).fallbacks == ()
    plain = run(small_model, 0, **options)[0]["coarse"]
    assert plain[0, -1] != 180


def _in_place(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores.mul_(0.5)


RETURNS = {
    "float64": lambda ids, scores: scores.double() / 2,
    "float16": lambda ids, scores: scores.half(),
    "bfloat16": lambda ids, scores: (scores / 64).bfloat16(),  # so flat that the noise's roundings decide
    "fewer ids": lambda ids, scores: scores[:, : SMALL.semantic_vocab - 3],
    "a stride": lambda ids, scores: torch.stack([scores, scores / 2], 2)[:, :, 1],
    "the other layout": lambda ids, scores: (scores / 2).T.contiguous().T,
    "in place": _in_place,
    "a view": lambda ids, scores: scores.view(len(scores), -1)[:],
    "infinity": lambda ids, scores: scores.index_fill(1, torch.tensor([int(ids[0, -1]) % 9]), torch.inf),
}


@needs_stocks_loop
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize("processor", RETURNS.values(), ids=RETURNS)
@pytest.mark.parametrize("inputs", [ALONE, TWO], ids=["one row", "two rows"])
def test_whatever_scores_a_processor_leaves(small_model, inputs, processor, greedy):
    """Tokens, random state and errors are stock's: of other dtypes, torch draws other numbers."""
    options, ends = {**inputs, **SAMPLED, "do_sample": not greedy, "fine_temperature": None}, []
    fast = accelerated_copy(small_model, speculate=True)
    for generate, model in ((stock_with, small_model), (streamed, fast)):
        try:
            ends.append((generate(model, 3, {"semantic": [processor]}, **options), torch.get_rng_state()))
        except RuntimeError as error:
            ends.append((str(error), torch.get_rng_state()))
    (expected, state), (got, own_state) = ends
    if isinstance(expected, str):
        assert got == expected and "inf" in expected and not greedy
    else:
        said = got != 0  # a stream is silent after a row's end
        assert got.shape == expected.shape and said.any(1).all()
        torch.testing.assert_close(got[said], expected[said], rtol=0, atol=1e-6)
    assert torch.equal(own_state, state)


def _writes_ids(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    ids[:, -1] = 3
    return scores


WRONG = {
    "nothing": (lambda ids, scores: None, TypeError, r"<lambda>: expected scores \[1, ids\] on cpu back, got NoneType"),
    "one row": (lambda ids, scores: scores[0], ValueError, r"<lambda>: expected scores \[1, ids\].*got \["),
    "two rows": (lambda ids, scores: scores.expand(2, -1), ValueError, r"<lambda>: expected .*got \[2, "),
    "ids": (_writes_ids, ValueError, "_writes_ids: expected input_ids left as they are"),
    "elsewhere": (
        lambda ids, scores: scores.to("meta"),
        ValueError,
        "<lambda>: expected .* on cpu back, got .* on meta",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_no_token_can_follow_is_one_clear_error(small_model, case):
    processor, error, message = case
    with pytest.raises(error, match=message):
        streamed(accelerated_copy(small_model), 0, {"semantic": [processor]}, **ALONE, **SAMPLED)


class ThreeArguments(LogitsProcessor):
    """Transformers gives no third argument, and refuses it."""

    def __call__(self, input_ids, scores, strength=1.0):
        return scores


def _never(*arguments: Any) -> Any:
    raise AssertionError("something was called")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"semantic_logits_processor": Lifting()}, TypeError, "expected a list of processors, got Lifting"),
        ({"semantic_logits_processor": [3]}, TypeError, r"expected callables of \(input_ids, scores\), got int"),
        ({"coarse_logits_processor": [ThreeArguments()]}, TypeError, r"ThreeArguments\(.*strength"),
        ({"coarse_logits_processor": [_never], "coarse_num_beams": 2}, TypeError, "coarse_logits_processor: .*beam"),
        (
            {"semantic_logits_processor": [_never], "coarse_num_beams": 2},
            TypeError,
            "semantic_logits_processor: .*beam",
        ),
    ],
    ids=["no list", "no callable", "three arguments", "beams", "beams of the other stage"],
)
def test_what_cannot_be_called_is_refused_before_any_work(small_model, monkeypatch, arguments, error, message):
    monkeypatch.setattr(SemanticStage, "start", _never)
    fast = accelerated_copy(small_model)
    with pytest.raises(error, match=message):
        fast.generate(**ALONE, **SAMPLED, **arguments, streamer=AudioStreamer(fast))


class CallsBoth(LogitsProcessor):
    """Notes the stage of each call by the number of scores."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, input_ids, scores):
        self.calls.append(scores.shape[1])
        return scores


def test_a_greedy_stream_calls_one_stage_after_the_other(small_model):
    """As `generate` would: a processor that both stages have may count its calls."""
    fast, both = accelerated_copy(small_model), CallsBoth()
    assert list(stream(fast, **ALONE, do_sample=False, semantic_max_new_tokens=30, logits_processor=[both]))
    assert len(set(both.calls)) == 2 and both.calls in (sorted(both.calls), sorted(both.calls, reverse=True))


Nameless = type("", (), {"__call__": lambda self, ids, scores: scores})


@pytest.mark.parametrize(
    "processor, name",
    [
        (lambda ids, scores: scores, "<lambda>"),
        (functools.partial(_in_place), "partial of _in_place"),
        (Nameless(), "a class without a name"),
        (TopKLogitsWarper(5, filter_value=-3.0), "TopKLogitsWarper"),
        (CallsBoth().__call__, "__call__"),
    ],
    ids=["lambda", "partial", "nameless", "usual warper", "method"],
)
def test_the_report_names_what_is_called(small_model, processor, name):
    fast = accelerated_copy(small_model)
    assert list(stream(fast, **ALONE, semantic_max_new_tokens=4, semantic_logits_processor=[processor]))
    assert [choice.detail for choice in acceleration_report(fast).token_choices] == [name]
    assert f"our steps, tokens chosen otherwise: semantic: {KIND}: {name}" in str(acceleration_report(fast))
