"""A caller's processors, called by our own loop: as often, in the same order and with the same ids as in stock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bark_models import SMALL, stage_configs, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, run
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.logits_process import BarkEosPrioritizerLogitsProcessor as EosPrioritizer
from transformers.generation.streamers import BaseStreamer

from bark_accel import acceleration_report, stream
from bark_accel.decoding.speculation import Speculation
from bark_accel.hf.compat import run_with_loop
from bark_accel.patches.resolve import _read_warpers, _Unread

ALONE, TWO = texts(SMALL, [7]), texts(SMALL, [4, 9])
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
