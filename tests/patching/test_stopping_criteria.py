"""Stopping criteria, Transformers' and the caller's: our own loop asks them after each token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bark_models import SMALL, preset, stage_configs, texts
from support.callers_processors import Seen, needs_stocks_loop, stock_with, streamed
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, run
from support.stock_limits import skip_where_stock_fails
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteria,
)

from bark_accel import FallbackKind, acceleration_report
from bark_accel.hf.compat import takes_return_dict

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 30}
SAMPLED = {"do_sample": True, "fine_temperature": 0.7}
KINDS = FallbackKind


class EndsRows(StoppingCriteria):
    """Ends a row at an id that `n` divides, after an odd number of them (whole frames) or, `parity` 0, an even one."""

    def __init__(self, n: int, parity: int = 1, chance: float = 1.0):
        self.n, self.parity, self.chance = n, parity, chance
        self.lengths: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert scores is None
        self.lengths.append(input_ids.shape[1])
        drawn = torch.rand(len(input_ids)) < self.chance
        return (input_ids[:, -1] % self.n == 0) & (input_ids.shape[1] % 2 == self.parity) & drawn


class OwnEnd(EosTokenCriteria):
    """A caller's class of a criterion that Transformers asks which ids end a row; notes what it is called with."""

    def __init__(self, ids: list[int]):
        super().__init__(torch.tensor(ids))
        self.last_ids: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.last_ids.append(input_ids[:, -2:].tolist())
        return super().__call__(input_ids, scores, **kwargs)


SEMANTIC = torch.randint(0, 90, (2, 60), generator=torch.Generator().manual_seed(0))


def _coarse(model: Any, semantic_tokens: torch.Tensor, history_prompt: Any, **options: Any) -> torch.Tensor:
    configs = {k: v for k, v in stage_configs(model).items() if not k.startswith("fine")}
    given = {"codebook_size": SMALL.codebook_size, "history_prompt": history_prompt, **options}
    return model.coarse_acoustics.generate(semantic_tokens.clone(), **configs, **given)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("n", [2, 5])
def test_semantic_tokens(small_model, n, rows, speculate):
    """Also the random state, where the criterion itself draws."""
    inputs = {**texts(SMALL, [4, 9][:rows]), **SHORT, **SAMPLED}
    fast = accelerated_copy(small_model, speculate=speculate)
    plain = run(small_model, 0, **inputs)[0]["semantic"]
    for chance in (1.0, 0.3):
        asked = [EndsRows(n, chance=chance) for _ in range(2)]
        expected = run(small_model, 0, **inputs, semantic_stopping_criteria=asked[:1])
        got = run(fast, 0, **inputs, semantic_stopping_criteria=asked[1:])
        assert_same_run(expected, got)
        assert asked[0].lengths == asked[1].lengths
        assert chance < 1 or got[0]["semantic"].shape[1] < plain.shape[1], "it ends nothing"
    assert {(r.stage, r.kind, r.detail) for r in acceleration_report(fast).token_choices} == {
        ("semantic", KINDS.STOPPING_CRITERIA, "EndsRows")
    }


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("voice", [None, preset(SMALL, 40, 60, seed=2)], ids=["", "voice"])
@pytest.mark.parametrize("n, parity, chance", [(3, 0, 1.0), (3, 1, 1.0), (7, 1, 1.0), (3, 1, 0.3)])
def test_coarse_windows(small_model, rows, voice, speculate, n, parity, chance):
    """What follows a window that ends early, of whatever length, is stock's; with a voice, it is a new prompt."""
    fast, asked = accelerated_copy(small_model, speculate=speculate), []

    def coarse_tokens(model):
        asked.append(EndsRows(n, parity, chance))
        torch.manual_seed(0)
        tokens = _coarse(model, SEMANTIC[:rows], voice, do_sample=True, stopping_criteria=asked[-1:])
        return tokens, torch.get_rng_state()

    expected, got = coarse_tokens(small_model), coarse_tokens(fast)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert asked[0].lengths == asked[1].lengths
    plain = _coarse(small_model, SEMANTIC[:rows], voice)
    assert got[0].shape[1] < plain.shape[1], "it ends nothing"


@pytest.mark.parametrize("rows, speculate", [(1, True), (2, None), (2, "criterion")])
@pytest.mark.parametrize("option", [{}, {"repetition_penalty": 1.3}, {"min_new_tokens": 7}], ids=str)
def test_an_end_in_coarse_windows(small_model, rows, speculate, option):
    """Rows that have ended are padded until the others have, also for a caller's criterion that has such an id."""
    fast = accelerated_copy(small_model, speculate=speculate is True)
    ends = list(range(101, SMALL.semantic_vocab + 2 * SMALL.codebook_size, 11))
    asked, padded = [OwnEnd([110, 175]), OwnEnd([110, 175])], 0

    def coarse_tokens(model, seed, own):
        given = {**option, "eos_token_id": ends, "do_sample": True}
        if speculate == "criterion":
            given |= {"pad_token_id": ends[0], "stopping_criteria": [own]}
        torch.manual_seed(seed)
        return _coarse(model, SEMANTIC[:rows], None, **given), torch.get_rng_state()

    for seed in range(4):
        expected, got = (coarse_tokens(m, seed, a) for m, a in zip((small_model, fast), asked, strict=True))
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        padded += int((got[0] == ends[0]).sum())
    assert asked[0].last_ids == asked[1].last_ids
    plain = _coarse(small_model, SEMANTIC[:rows], None)
    assert got[0].shape[1] < plain.shape[1] and (rows == 1 or padded > 20)
    report = acceleration_report(fast)
    assert report.fallbacks == () and "EosTokenCriteria" in {r.detail[:16] for r in report.token_choices}


@pytest.mark.parametrize(
    "ends",
    [{"eos_token_id": 110}, {"stopping_criteria": [EosTokenCriteria(110)]}],
    ids=lambda ends: next(iter(ends)),
)
def test_an_end_beside_another_pad_token(small_model, ends):
    """Stock masks that token in the prompt."""
    fast = accelerated_copy(small_model, strict=False)
    pad = int(SEMANTIC[0, 3])
    expected, got = (_coarse(m, SEMANTIC, None, pad_token_id=pad, **ends) for m in (small_model, fast))
    assert torch.equal(got, expected)
    assert {(r.stage, r.kind) for r in acceleration_report(fast).fallbacks} == {("coarse", KINDS.TOKEN_LAYOUT)}


def test_an_end_without_a_pad_token(small_model):
    """Stock's error."""
    for model in (small_model, accelerated_copy(small_model, strict=False)):
        with pytest.raises(TypeError, match="NoneType"):
            _coarse(model, SEMANTIC, None, stopping_criteria=[OwnEnd([110])])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "criteria",
    [
        [EosTokenCriteria([33, 41, 11]), EosTokenCriteria([75, 13])],
        [MaxLengthCriteria(22), MaxLengthCriteria(30)],
        [MaxLengthCriteria(30), MaxLengthCriteria(22)],
        [MaxLengthCriteria(3)],
        [MaxLengthCriteria(17)],
    ],
    ids=["two ends", "two lengths", "two lengths turned", "less than the prompt", "the prompt"],
)
def test_criteria_that_the_stage_knows(small_model, criteria, rows):
    """Each of several counts, and none is asked before the first token."""
    skip_where_stock_fails("criteria of its own kind")
    options = {**texts(SMALL, [4, 9][:rows]), **SHORT, **SAMPLED}
    for seed in range(3):
        given = {**options, "semantic_stopping_criteria": criteria}
        tokens = assert_equal_to_stock(small_model, accelerated_copy(small_model), seed, **given)["semantic"]
        assert tokens.shape[1] < run(small_model, seed, **options)[0]["semantic"].shape[1]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("least", [{"min_new_tokens": 12}, {"min_length": 27}], ids=str)
@pytest.mark.parametrize("ends", [[*range(0, 100, 5)], [SMALL.semantic_vocab, *range(0, 100, 5)]], ids=len)
def test_a_least_length_before_other_ends(small_model, ends, least, rows):
    """Those that were asked for are kept back, not the stage's own."""
    options = {**texts(SMALL, [4, 9][:rows]), **SHORT, **SAMPLED, "semantic_eos_token_id": ends}
    options |= {f"semantic_{name}": value for name, value in least.items()}
    for seed in range(3):
        tokens = assert_equal_to_stock(small_model, accelerated_copy(small_model), seed, **options)["semantic"]
        assert tokens.shape[1] > 10 and not torch.isin(tokens[:, :10], torch.tensor(ends)).any()


def test_answers_that_are_numbers(small_model):
    """Transformers' loop looks at their last bit."""

    def answer(ids, scores, **others):
        return 3 * (ids[:, -1] % 5 == 3).long() + 2 * (ids[:, -1] % 4 == 1).long()

    options = {**INPUTS, **SHORT, **SAMPLED, "semantic_stopping_criteria": [answer]}
    tokens = assert_equal_to_stock(small_model, accelerated_copy(small_model), **options)["semantic"]
    assert tokens.shape[1] < 30


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_answers_of_another_shape(small_model, stage):
    def answer(ids, scores, **others):
        return ids[:, -1:] == 33

    options = {**texts(SMALL, [4]), **SHORT, f"{stage}_stopping_criteria": [answer]}
    with pytest.raises(ValueError, match=r"answer: expected bools \[1\], whether each row ends, got \[1, 1\]"):
        accelerated_copy(small_model).generate(**options)


def test_rows_with_voices_of_their_own(small_model):
    """Each ends as it would alone."""
    voices, criteria = [preset(SMALL, 40, 60, seed=2), preset(SMALL, 40, 60, seed=1)], [EndsRows(3)]
    got = _coarse(accelerated_copy(small_model), SEMANTIC, voices, stopping_criteria=criteria)
    for row, voice in enumerate(voices):
        expected = _coarse(small_model, SEMANTIC[row : row + 1], voice, stopping_criteria=criteria)
        width = expected.shape[1]
        assert torch.equal(got[row, :width], expected[0]) and not got[row, width:].any()


@needs_stocks_loop
def test_beside_processors_in_a_stream(small_model):
    fast, ends = accelerated_copy(small_model), []
    options = {**texts(SMALL, [9]), **SHORT, **SAMPLED}
    for generate, model in ((stock_with, small_model), (streamed, fast)):
        criteria = {"semantic_stopping_criteria": [EndsRows(11)], "coarse_stopping_criteria": [EndsRows(5)]}
        ends.append(generate(model, 0, {"semantic": [Seen()], "coarse": [Seen()]}, **options, **criteria))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-6)


def test_one_that_is_called_with_scores(small_model):
    if not takes_return_dict():
        pytest.skip("stock fails")

    def unlikely(input_ids, scores, **kwargs):
        return scores[-1].max(1).values < 3.0

    asked = {"semantic_return_dict_in_generate": True, "semantic_output_scores": True}
    options = {**INPUTS, **SHORT, **asked, "semantic_stopping_criteria": [unlikely]}
    got = assert_equal_to_stock(small_model, accelerated_copy(small_model), **options)
    assert got["semantic"].shape[1] < run(small_model, 0, **INPUTS, **SHORT)[0]["semantic"].shape[1]


def test_a_length_of_windows(small_model):
    """Takes the place of Bark's own, and makes longer windows or shorter ones."""
    for length in (33, 51):
        options = {**INPUTS, **SHORT, "coarse_stopping_criteria": [MaxLengthCriteria(length)]}
        plain = run(small_model, 0, **INPUTS, **SHORT)[0]["coarse"]
        try:
            expected = run(small_model, 0, **options)[0]["coarse"]
        except (ValueError, RuntimeError) as error:
            with pytest.raises((ValueError, type(error))):
                run(accelerated_copy(small_model), 0, **options)
            continue
        got = run(accelerated_copy(small_model), 0, **options)[0]["coarse"]
        assert torch.equal(got, expected) and not torch.equal(got, plain)


def test_ids_are_not_to_be_written_to(small_model):
    def writes(input_ids, scores, **kwargs):
        input_ids[:, -1] = 0
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(ValueError, match="writes: expected input_ids left as they are, got them changed"):
        accelerated_copy(small_model).generate(**INPUTS, **SHORT, semantic_stopping_criteria=[writes])
