"""A newer Transformers or torch than the tested ones is used, and said aloud once."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers

from bark_accel import accelerate_bark
from bark_accel.hf import compat

HERE = (transformers.__version__, torch.__version__)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    compat.warn_of_untested.cache_clear()
    yield
    compat.warn_of_untested.cache_clear()


def said_by(accelerate):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerate()
    return [w for w in caught if "was not tested with" in str(w.message)]


@pytest.mark.parametrize(
    "tested, expected",
    [
        (HERE, None),
        (("4.2.0", HERE[1]), f"Transformers {HERE[0]} (newest tested: 4.2.0)."),
        ((HERE[0], "2.1.0"), f"torch {HERE[1]} (newest tested: 2.1.0)."),
        (
            ("4.1.0", "2.1.0"),
            f"Transformers {HERE[0]} (newest tested: 4.1.0) and torch {HERE[1]} (newest tested: 2.1.0).",
        ),
        (("99.0.0", "99.0.0"), None),
    ],
)
def test_once_and_at_the_callers_line(small_model, monkeypatch, tested, expected):
    monkeypatch.setattr(compat, "TESTED_VERSIONS", ("4.0.0", tested[0]))
    monkeypatch.setattr(compat, "TESTED_TORCH", ("2.0.0", tested[1]))
    models = [copy.deepcopy(small_model) for _ in range(2)]
    said = said_by(lambda: [accelerate_bark(model) for model in models])
    assert len(said) == (expected is not None)
    assert all(expected in str(w.message) and w.filename == __file__ for w in said)


def test_a_corrected_version_of_a_tested_one_counts_as_tested():
    assert not compat._is_newer("5.24.1", "5.24.0") and not compat._is_newer("2.13.1+cu130", "2.13.0")
    assert not compat._is_newer("5.24.0.dev0", "5.24.0") and not compat._is_newer("4.57.6", "5.0.0")
    assert compat._is_newer("5.100.0", "5.24.0") and compat._is_newer("2.14.0.dev1+cpu", "2.13.0")
