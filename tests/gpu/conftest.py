"""Skips everything here on machines without a GPU, or with a library that was built without CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bark_accel._library import cuda_archs


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if cuda_archs() is None:
        pytest.skip("the library was built without CUDA: BARK_ACCEL_CUDA=1 python setup.py build_ext --inplace")
    torch.manual_seed(0)
    with torch.no_grad():
        yield
