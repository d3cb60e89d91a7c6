"""Models that the benchmarks share: random weights of real shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers
from transformers import BarkModel

from bark_accel.bench.models import random_bark


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def bark() -> Callable[[str], BarkModel]:
    """Stock models by shape; only the one asked for last is kept."""
    transformers.logging.set_verbosity_error()
    return functools.lru_cache(maxsize=1)(random_bark)
