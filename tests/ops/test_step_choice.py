"""Whether a GPU's tokens are one kernel or graphs: said by the user, a table, or a trial that holds on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bark_accel.ops import step_choice, token_run
from bark_accel.ops.interface import StepCache, StepWeights
from bark_accel.ops.step_choice import StepChoice, choice, keep, made

KEY = "a card, 12 layers of 768 in float16, 1 rows, torch 2.13"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(step_choice.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_choice, "_made", {})


def test_unmeasured_gpus_run_kernels() -> None:
    assert choice(KEY) == StepChoice("kernels", "not measured on this GPU") and made() == {}


def test_a_measured_gpu_is_known_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_choice._MEASURED, KEY, "persistent")
    assert choice(KEY) == StepChoice("persistent", "measured") and str(made()[KEY]) == "persistent (measured)"
    assert choice(KEY.replace("1 rows", "2 rows")) == StepChoice("kernels", "not measured on this GPU")


@pytest.mark.parametrize("step", step_choice.STEPS)
def test_the_user_overrides_the_table_and_trials(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    other = next(name for name in step_choice.STEPS if name != step)
    monkeypatch.setitem(step_choice._MEASURED, KEY, other)
    keep(KEY, other)
    monkeypatch.setenv(step_choice.VARIABLE, step)
    assert choice(KEY) == StepChoice(step, step_choice.VARIABLE)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(step_choice.VARIABLE, "fast")
    with pytest.raises(ValueError, match="_CUDA_STEP: expected kernels, persistent, torch or trial, got 'fast'"):
        choice(KEY)


def test_a_trial_holds_for_later_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(step_choice.VARIABLE, "trial")
    assert choice(KEY) is None
    first = keep(KEY, "persistent")
    (file,) = (tmp_path / "bark_accel").iterdir()
    assert first == choice(KEY) == StepChoice("persistent", f"trial, kept in {file}")
    step_choice._made.clear()
    assert choice(KEY) == first
    step_choice._made.clear()
    assert keep(KEY, "kernels") == first, "the first of two processes decides"
    file.write_text("{")
    step_choice._made.clear()
    assert choice(KEY) is None and keep(KEY, "kernels").step == "kernels"
    step_choice._made.clear()
    monkeypatch.setattr(step_choice, "__version__", "0")  # the kernels may be others
    assert choice(KEY) is None


def test_where_nothing_can_be_kept_a_trial_holds_for_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(step_choice.VARIABLE, "trial")
    (tmp_path / "bark_accel").write_text("a file in the folder's place")
    assert choice(KEY) is None
    assert keep(KEY, "persistent") == choice(KEY) == made()[KEY]
    assert str(choice(KEY)) == "persistent (trial of this process, no folder keeps it)"


def test_the_faster_is_taken_by_its_best_round() -> None:
    times = {"kernels": iter([5.0, 1.0, 5.0]), "persistent": iter([2.0, 2.0, 2.0])}
    assert step_choice.of_trial({name: its.__next__ for name, its in times.items()}) == "kernels"


class Library:
    persistent_step = False

    def runs_all_blocks_at_once(self, device: int) -> bool:
        return True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[StepWeights, StepCache]:
    """A step that fits, on what says it is a GPU."""
    cache = torch.empty(2, 1, 2, 8, 16, device="meta", dtype=torch.float16)
    head = torch.empty(32, 32, device="meta", dtype=torch.float16)
    monkeypatch.setattr(token_run, "misfit", lambda weights, cache: None)
    monkeypatch.setattr(token_run._library, "load", Library)
    monkeypatch.setattr(step_choice, "gpu_model", lambda device: "a card")
    monkeypatch.setattr(token_run, "_is_gpu", lambda device: True)
    weights = StepWeights(head, head, [], [], head, None, 2)
    return weights, StepCache(cache, cache, torch.empty(1, device="meta", dtype=torch.int64))


@pytest.mark.parametrize(
    "asked, kept, chosen, tried",
    [
        (None, None, False, False),
        ("torch", None, False, False),
        ("trial", "torch", False, False),
        ("kernels", None, False, False),
        ("persistent", None, True, False),
        ("trial", None, True, True),
        ("trial", "kernels", False, False),
        ("trial", "persistent", True, False),
        (None, "persistent", False, False),  # a trial holds for those who ask for one
    ],
)
def test_what_is_chosen_runs(
    monkeypatch: pytest.MonkeyPatch, gpu: Any, asked: str | None, kept: str | None, chosen: bool, tried: bool
) -> None:
    if asked is not None:
        monkeypatch.setenv(step_choice.VARIABLE, asked)
    key = step_choice.key_of(*gpu)
    assert key == "a card, 2 layers of 32 in float16, 1 rows, torch " + ".".join(torch.__version__.split(".")[:2])
    if kept is not None:
        keep(key, kept)
    assert token_run.is_chosen(*gpu) == chosen
    assert token_run.is_torchs(*gpu) == ("torch" in (asked, kept))
    assert (token_run.to_be_tried(*gpu) == key) == tried
