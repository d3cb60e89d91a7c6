"""A stand-in for `IPython.display`, so that what notebooks show is tested without Jupyter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


class Audio:
    """The player of a notebook, with the arguments of IPython's that are used here: a waveform [S] and its rate."""

    def __init__(self, data: np.ndarray, *, rate: int, normalize: bool = True):
        assert data.ndim == 1 and data.size > 0 and np.isfinite(data).all()
        self.data, self.rate, self.normalize = data, rate, normalize


def install(monkeypatch: pytest.MonkeyPatch, display: Callable) -> None:
    """Make `IPython.display` a module with that `display`, in which HTML is a str."""
    module = ModuleType("IPython.display")
    vars(module).update(Audio=Audio, HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
