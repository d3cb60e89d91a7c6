"""Options that edit the logits, in captured steps: what they remember starts anew with each block."""

from __future__ import annotations

import pytest
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.edit_options import OPTIONS
from support.parity import accelerated_copy, assert_equal_to_stock

INPUTS = texts(SMALL, [4, 9])
ALONE = texts(SMALL, [7])
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30, "fine_temperature": 0.7}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("inputs", [ALONE, INPUTS], ids=["one row", "two rows"])
def test_captured_steps(small_model, capturer: CallCapturer, options, inputs):
    fast = accelerated_copy(small_model, speculate=False)
    for seed in (0, 1):
        assert_equal_to_stock(small_model, fast, seed, **inputs, **SAMPLED, **options)
    assert capturer.replayed > 0


def test_an_option_of_the_call_before_is_forgotten(small_model, capturer: CallCapturer):
    fast = accelerated_copy(small_model, speculate=False)
    for penalty in (1.5, 1.2, None, 1.5):
        options = {} if penalty is None else {"repetition_penalty": penalty}
        assert_equal_to_stock(small_model, fast, **INPUTS, **SAMPLED, **options)
