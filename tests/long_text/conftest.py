from __future__ import annotations

import pytest
from support.parity import accelerated_copy
from support.tiny_text import tiny_processor


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def fast(small_model):
    """Accelerated. Never change it."""
    return accelerated_copy(small_model)
