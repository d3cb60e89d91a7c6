"""The notebook of examples/, its cells run from top to bottom; Jupyter is not needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


class Audio:
    """The player of a notebook, which takes a waveform [S] and its rate."""

    def __init__(self, data: np.ndarray, *, rate: int):
        assert data.ndim == 1 and data.size > 0.3 * rate and np.isfinite(data).all() and np.abs(data).max() > 0.01
        self.data, self.rate = data, rate


@pytest.fixture
def shown(monkeypatch):
    """Whatever `display` was given."""
    shown: list[Audio] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    display.Audio, display.display = Audio, shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_from_top_to_bottom(shown, capsys):
    namespace: dict = {}
    for number, source in enumerate(CODE):
        exec(compile(source, f"{NOTEBOOK.name}, code cell {number}", "exec"), namespace)
    assert len(shown) == sum(source.count("display(Audio(") for source in CODE) + 1, "one cell shows two rows"
    stock, fast = shown[:2]
    assert stock.rate == namespace["model"].generation_config.sample_rate
    np.testing.assert_allclose(fast.data, stock.data, atol=1e-5)
    assert capsys.readouterr().out.endswith("the same as before: True\n")


def test_it_is_kept_without_outputs():
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
