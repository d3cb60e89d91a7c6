"""The notebooks of examples/, their cells run from top to bottom; Jupyter is not needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import notebook_display
from support.stock_limits import skip_where_stock_fails

EXAMPLES = Path(__file__).parents[1] / "examples"


def cells(name: str) -> list[dict]:
    return json.loads((EXAMPLES / name).read_text())["cells"]


def sources(name: str) -> list[str]:
    """Those of the code cells."""
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]


class Place:
    """A place in the output of a cell, which shows one thing after the other."""

    def __init__(self, shown: list):
        self._shown = shown

    def update(self, what: object) -> None:
        self._shown.append(what)


@pytest.fixture
def run(monkeypatch):
    """Runs a notebook; gives its names and whatever `display` was given."""
    shown: list = []

    def display(what: object, *, display_id: bool = False) -> Place:
        shown.append(what)
        return Place(shown)

    notebook_display.install(monkeypatch, display)

    def run(name: str) -> tuple[dict, list]:
        namespace: dict = {}
        for number, source in enumerate(sources(name)):
            exec(compile(source, f"{name}, code cell {number}", "exec"), namespace)
        return namespace, shown

    return run


def is_speech(player: notebook_display.Audio) -> bool:
    """Whether it has one row of more than 0.3 s that is not silence."""
    return player.data.ndim == 1 and player.data.size > 0.3 * player.rate and np.abs(player.data).max() > 0.01


def test_tour(run, capsys):
    namespace, shown = run("tour.ipynb")
    written = sum(source.count("display(Audio(") for source in sources("tour.ipynb"))
    assert len(shown) == written + 1, "one cell shows two rows"
    assert all(is_speech(player) for player in shown)
    stock, fast = shown[:2]
    assert stock.rate == namespace["model"].generation_config.sample_rate
    np.testing.assert_allclose(fast.data, stock.data, atol=1e-5)
    assert capsys.readouterr().out.endswith("the same as before: True\n")


def test_bark_notebooks(run, capsys):
    """What notebooks of Bark do, each model with the one line more, and none of it in Transformers' own code."""
    skip_where_stock_fails("text-to-speech pipeline")
    namespace, shown = run("bark_notebooks.ipynb")
    players = [what for what in shown if isinstance(what, notebook_display.Audio)]
    assert len(players) == 8, "two rows of a batch, and the whole of what was played"
    assert all(is_speech(player) for player in players)
    assert [what for what in shown if isinstance(what, str) and "<script>" in what], "sound before the end"
    assert namespace["half"].dtype == torch.float16
    made = ["model", "half", "small"]
    assert all("fell back: never" in str(namespace["acceleration_report"](namespace[name])) for name in made)
    out, bars = capsys.readouterr()
    assert "the same again: True\n" in out and "coarse: 100%" in bars


@pytest.mark.parametrize("name", [path.name for path in EXAMPLES.glob("*.ipynb")])
def test_it_is_kept_without_outputs(name):
    assert not [cell for cell in cells(name) if cell.get("outputs") or cell.get("execution_count")]
    assert f"test_{Path(name).stem}" in globals(), "and run"
