"""Every field of `GenerationConfig`: stock's tokens and random state, chosen by whom docs/options.md says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from support.bark_models import SMALL, texts
from support.generation_fields import CASES, claims, installed_fields
from support.parity import accelerated_copy, assert_equal_to_stock, run
from torch import nn

from bark_accel import FallbackKind, acceleration_report
from bark_accel.hf.compat import TESTED_VERSIONS, run_with_loop

# One of two rows ends before the other.
BASE = {"do_sample": True, "fine_temperature": 0.7, "semantic_max_new_tokens": 24, "min_eos_p": 0.005}
STOCKS_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError)
# Called without an effect on these tokens: on prompts of one token, on the last token of all, on roundings, and so on.
UNSEEN = {"forced_bos_token_id", "forced_eos_token_id", "max_time", "prompt_lookup_num_tokens", "remove_invalid_values"}
UNSEEN |= {"renormalize_logits", "stop_strings"}


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
        # Stock's codec cannot decode the few tokens that some versions have left here; ours can.
        if claim == "nobody" and "Kernel size" not in str(error):
            with pytest.raises(type(error)):
                run(fast, 0, **options)
            return
        if transformers.__version__ == TESTED_VERSIONS[-1]:
            raise
        pytest.skip(f"stock fails in this version: {error}")
    assert claim != "nobody" or transformers.__version__ != TESTED_VERSIONS[-1]
    tokens = assert_equal_to_stock(small_model, fast, ran=ran, **options)
    assert claim == "nobody" or chosen_by(fast, stage) == claim.replace("none", "fused")
    same = all(torch.equal(tokens[part], plain[case.rows][part]) for part in ("semantic", "coarse", "fine"))
    if claim in ("none", "nobody"):
        assert same
    elif transformers.__version__ == TESTED_VERSIONS[-1] and name not in UNSEEN:
        assert not same, "the case's value has no effect"


OPTIONS = {"use_cache": (False, "use_cache=False"), "cache_implementation": ("static", "cache_implementation=static")}
OPTIONS["compile_config"] = (CASES["compile_config"].value, "compile_config=CompileConfig")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_the_report_names_what_changes_nothing(small_model, name, stage):
    value, said = OPTIONS[name]
    fast = accelerated_copy(small_model, strict=False)
    if value is None or claims()[name][stage] != "none":
        pytest.skip("this Transformers has no such config, or the option is not without effect")
    if value == getattr(transformers.GenerationConfig(), name):
        pytest.skip("what this Transformers has by default is not named")
    for _ in range(2):
        fast.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8, **{f"{stage}_{name}": value})
    report = acceleration_report(fast)
    assert report.unneeded_options == (f"{stage}: {said}",) and report.fallbacks == report.token_choices == ()
    assert f"without effect here: {stage}: {said}" in str(report)


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


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_a_static_cache_may_be_asked_for_again(small_model, stage):
    """Transformers makes one before its loop runs, and 4.57 and 5.0 trip over it the next time."""
    fast = accelerated_copy(small_model, strict=False)
    for _ in range(2):
        fast.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8, **{f"{stage}_cache_implementation": "static"})
    assert not any("_cache" in vars(part) for part in (fast.semantic, fast.coarse_acoustics))


@pytest.mark.parametrize("kept", [{}, {"_cache": "stock's"}])
def test_no_static_cache_is_left_on_a_module(kept):
    """As 4.57 and 5.0 leave one; what stock had there before stays."""
    module = nn.Identity()
    vars(module).update(kept)

    def generate(module: Any, **arguments: Any) -> None:
        assert "_cache" not in vars(module) or "custom_generate" not in arguments
        module._cache = "never filled"

    run_with_loop(generate, module, lambda *given, **prepared: None)
    assert {name: value for name, value in vars(module).items() if name == "_cache"} == kept
