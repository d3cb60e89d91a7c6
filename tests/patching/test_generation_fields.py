"""Every field of `GenerationConfig`: stock's tokens and random state, chosen by whom docs/options.md says."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.bark_models import SMALL, texts
from support.generation_fields import CASES, claims, installed_fields
from support.parity import accelerated_copy, assert_equal_to_stock, run

from bark_accel import FallbackKind, acceleration_report
from bark_accel.hf.compat import TESTED_VERSIONS

BASE = {"do_sample": True, "fine_temperature": 0.7, "semantic_max_new_tokens": 24}
STOCKS_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError)


def test_the_table_has_every_field():
    """A new field of a new Transformers fails here until it has a case and a claim."""
    assert sorted(claims()) == sorted(CASES)
    assert set(installed_fields()) <= set(CASES)


@pytest.fixture(scope="module")
def plain(small_model):
    """Stock's tokens without any field, for one row and for two."""
    return {rows: run(small_model, 0, **texts(SMALL, [4, 9][:rows]), **BASE)[0] for rows in (1, 2)}


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
@pytest.mark.parametrize("name", installed_fields())
def test_claim(small_model, plain, name, stage):
    case, claim = CASES[name], claims()[name][stage]
    inputs = texts(SMALL, [4, 9][: case.rows])
    given = {f"{stage}_{key}": value for key, value in {**case.others, name: case.value}.items()}
    options = {**inputs, **BASE, **given}
    fast = accelerated_copy(small_model, strict=False)
    try:
        ran = run(small_model, 0, **options)
    except STOCKS_ERRORS as error:
        if claim == "nobody":
            with pytest.raises(type(error)):
                run(fast, 0, **options)
            return
        if transformers.__version__ == TESTED_VERSIONS[-1]:
            raise
        pytest.skip(f"stock fails in this version: {error}")
    assert claim != "nobody" or transformers.__version__ != TESTED_VERSIONS[-1]
    tokens = assert_equal_to_stock(small_model, fast, ran=ran, **options)
    assert claim == "nobody" or chosen_by(fast, stage) == claim.replace("none", "fused")
    if claim == "none":
        assert torch.equal(tokens["fine"], plain[case.rows]["fine"])


def chosen_by(fast: transformers.BarkModel, stage: str) -> str:
    """Who chose the tokens of a stage, by the report: no other stage has anything to say."""
    report = acceleration_report(fast)
    assert {reason.stage for reason in (*report.fallbacks, *report.token_choices)} <= {stage}
    if report.fallbacks or not report.token_choices:
        return "stock" if report.fallbacks else "fused"
    called = {reason.kind for reason in report.token_choices} <= {
        FallbackKind.LOGITS_PROCESSOR,
        FallbackKind.STOPPING_CRITERIA,
    }
    return "called" if called else "loop"
