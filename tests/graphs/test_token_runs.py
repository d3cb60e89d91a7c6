"""Many tokens in one kernel, which ends with the speech, against one token after the other."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graphs.test_graph_draw import LONGEST, OPTIONS, tokens
from support.bark_models import SMALL, preset, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy
from support.philox import PhiloxGenerator, decode_tokens
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from bark_accel import acceleration_report, free_memory
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding import graph_parts, step_graphs, step_trial
from bark_accel.decoding.sampling import TokenRange
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import cpu, reference, step_choice, token_run
from bark_accel.ops.interface import StepCache, StepWeights
from bark_accel.stages import semantic
from bark_accel.transformer import causal
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.precision import convert


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, generator: PhiloxGenerator) -> list[int]:
    """Tokens of each launch so far; a CPU has the op, and takes it where a GPU would."""
    drawn: list[int] = []

    def counted(weights: Any, heads: Any, cache: Any, step: Any, *rest: Any) -> None:
        before = int(step.counts[0])
        decode_tokens(weights, heads, cache, step, *rest)
        drawn.append(int(step.counts[0]) - before)

    monkeypatch.setattr(cpu, "OPS", replace(cpu.OPS, decode_tokens=counted))

    def is_chosen(weights: StepWeights, cache: StepCache) -> bool:
        choice = step_choice.choice(step_choice.key_of(weights, cache)) if step_choice.wanted() else None
        return token_run.misfit(weights, cache) is None and (choice is None or choice.step == "persistent")

    monkeypatch.setattr(token_run, "is_chosen", is_chosen)
    return drawn


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", ([6], [4, 9, 2], [3] * 5), ids=("one row", "three rows", "five rows"))
def test_tokens_of_a_launch_are_one_after_the_other(
    small_model: Any,
    capturer: CallCapturer,
    generator: PhiloxGenerator,
    launches: list[int],
    lengths: list[int],
    options: dict[str, Any],
) -> None:
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    fast = accelerated_copy(small_model, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, lengths), **options)
    for _ in range(2):  # captured, and replayed
        launches.clear()
        got, state_after = tokens(fast, generator, **texts(SMALL, lengths), **options)
        assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
        assert torch.equal(state_after, state)
    assert "min_eos_p" not in options or got["semantic"].shape[1] < LONGEST
    assert bool(launches) == (len(lengths) <= token_run.MOST_ROWS and "repetition_penalty" not in options)


def test_a_launch_is_a_window_or_ends_with_the_speech(
    small_model: Any, capturer: CallCapturer, generator: PhiloxGenerator, launches: list[int]
) -> None:
    fast = accelerated_copy(small_model, speculate=False)
    options = {**texts(SMALL, [6]), **OPTIONS["ends early"]}
    tokens(fast, generator, **options)  # captures run a token each
    launches.clear()
    got, _ = tokens(fast, generator, **options)
    spoken, coarse = got["semantic"].shape[1], got["coarse"].shape[1]
    windows = [min(SMALL.window, coarse - start) - 1 for start in range(0, coarse, SMALL.window)]
    assert 1 < spoken < LONGEST
    assert launches == [spoken - 1, *(n for n in windows if n)]  # prompts draw the first ones


def test_a_launch_is_a_whole_stage_but_for_who_waits_for_its_tokens(
    small_model: Any, capturer: CallCapturer, generator: PhiloxGenerator, launches: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(step_graphs, "MAX_BLOCK_TOKENS", 3)
    monkeypatch.setattr(semantic, "HEARD_TOKENS", 4)
    fast = accelerated_copy(small_model, speculate=False)
    options = {**texts(SMALL, [6]), **OPTIONS["sampled"]}
    whole, _ = tokens(fast, generator, **options)
    launches.clear()
    tokens(fast, generator, **options)
    count = whole["semantic"].shape[1] - 1  # the prompt draws the first one
    assert count > 8 and launches[0] == count
    launches.clear()
    heard, _ = tokens(fast, generator, **options, semantic_streamer=Listener())
    assert launches[: count // 4] == [4] * (count // 4)
    assert torch.equal(heard["semantic"], whole["semantic"])


class Listener(BaseStreamer):
    """Hears tokens and does nothing."""

    def put(self, value: Tensor) -> None:
        """Take tokens."""

    def end(self) -> None:
        """Take their end."""


def test_windows_that_move_with_a_voice_preset(
    small_model: Any, capturer: CallCapturer, generator: PhiloxGenerator, launches: list[int]
) -> None:
    options = {**texts(SMALL, [5]), "history_prompt": preset(SMALL, 30, 60), **OPTIONS["sampled"]}
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, _ = tokens(plain, generator, **options)
    got, _ = tokens(accelerated_copy(small_model, speculate=False), generator, **options)
    assert launches and all(torch.equal(got[stage], expected[stage]) for stage in expected)


def test_scores_that_are_not_numbers_are_refused(
    small_model: Any, capturer: CallCapturer, generator: PhiloxGenerator, launches: list[int]
) -> None:
    fast = accelerated_copy(small_model, speculate=False)
    fast.coarse_acoustics.lm_head.weight.data[SMALL.semantic_vocab + SMALL.codebook_size + 3] = torch.nan
    with pytest.raises(ValueError, match=r"without NaN .* got one in row 0"):
        tokens(fast, generator, **texts(SMALL, [6]), **OPTIONS["sampled"])


def test_ranges_of_a_launch() -> None:
    a, b = TokenRange(0, 5), TokenRange(5, 9)
    assert graph_parts.turns([a] * 9) == ((a,), 9)
    assert graph_parts.turns([a, b] * 3) == ((a, b), 6)
    assert graph_parts.turns([a, a, a, b, b]) == ((a,), 3)
    assert graph_parts.turns([a, b, b]) == ((a, b), 2)
    assert graph_parts.turns([b]) == ((b,), 1)


def step_of(module: Any, rows: int, precision: str = "same", **options: Any) -> tuple[StepWeights, StepCache]:
    weights, spec = transformer_weights("semantic", module), transformer_spec(module)
    model = CausalModel(convert(weights, precision), spec, cpu.OPS)
    cache = KVCache.empty(spec, rows, options.get("cache", model.weights.cache_dtype), torch.device("cpu"))
    return model._step, cache.tensors


@torch.no_grad()
def test_what_one_kernel_cannot_do_is_said(small_model: Any) -> None:
    module = small_model.semantic
    assert token_run.misfit(*step_of(module, 4)) is None
    assert token_run.misfit(*step_of(module, 1, "float16")) is None
    assert token_run.misfit(*step_of(module, 5)) == "5 rows, not 1 to 4"
    assert "a cache of torch.float16 beside" in str(token_run.misfit(*step_of(module, 1, cache=torch.float16)))
    weights, cache = step_of(module, 1)
    mixed = [t.half() if t is not None and t.dim() == 2 else t for t in weights.layers[:5]]
    assert (
        token_run.misfit(weights._replace(layers=[*mixed, *weights.layers[5:]]), cache) == "weights of several dtypes"
    )
    assert "lines of 16 bytes" in str(token_run.misfit(weights._replace(head=weights.head[:, 1:]), cache))
    assert "lines of 16 bytes" in str(
        token_run.misfit(weights._replace(head=weights.head.flatten()[1:65][None]), cache)
    )


def test_nobody_is_asked_for_it_on_a_cpu(small_model: Any) -> None:
    assert not token_run.is_chosen(*step_of(small_model.semantic, 1))


def test_a_launch_of_other_tokens_is_noticed_and_left(
    small_model: Any,
    capturer: CallCapturer,
    generator: PhiloxGenerator,
    launches: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = cpu.OPS.decode_tokens
    assert right is not None

    def wrong(weights: Any, heads: Any, cache: Any, step: Any, *rest: Any) -> None:
        right(weights, heads, cache, step, *rest)
        step.drawn[int(step.counts[0]) - 1] ^= 1

    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, [6]), **OPTIONS["sampled"])
    monkeypatch.setattr(cpu, "OPS", replace(cpu.OPS, decode_tokens=wrong))
    with pytest.warns(UserWarning, match="other tokens than those of kernels one by one"):
        got, state_after = tokens(
            accelerated_copy(small_model, speculate=False), generator, **texts(SMALL, [6]), **OPTIONS["sampled"]
        )
    assert all(torch.equal(got[stage], expected[stage]) for stage in expected) and torch.equal(state_after, state)


class Failing(CallCapturer):
    """Captures everything but one kind of step, which fails as on a device that cannot have it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.refused = kind, 0

    def capture(self, step: Any, generator: Any) -> Any:
        if self.kind and self.kind in self.kind_of(step):
            self.refused += 1
            step()
            raise RuntimeError("too many blocks in cooperative launch")
        return super().capture(step, generator)

    @staticmethod
    def kind_of(step: Any) -> str:
        """Tell `step_captures._steps` apart: a launch, steps of torch's own operations, or those of the kernels."""
        if step.__name__ == "launch":
            return "persistent"
        decode_step = inspect.getclosurevars(step).nonlocals["model"].ops.decode_step
        return "kernels" if decode_step is cpu.OPS.decode_step else "torch"


def test_one_kernel_that_cannot_be_captured_leaves_the_graphs(
    small_model: Any, generator: PhiloxGenerator, launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing("persistent")
    monkeypatch.setattr(graphs, "make_capturer", lambda device: failing)
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    fast = accelerated_copy(small_model, speculate=False)
    said_before = 0
    for lengths in ([6], [6], [4, 9]):  # said and tried once a stage, whatever the batch
        expected, state = tokens(plain, generator, **texts(SMALL, lengths), **OPTIONS["sampled"])
        launches.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got, state_after = tokens(fast, generator, **texts(SMALL, lengths), **OPTIONS["sampled"])
        assert all(torch.equal(got[stage], expected[stage]) for stage in expected) and torch.equal(state_after, state)
        said_before += sum("take the place of one CUDA kernel for many tokens: Runtime" in str(w.message) for w in said)
        assert said_before == 2 and not launches[2:]
    report = acceleration_report(fast)
    assert failing.refused == 2 and failing.replayed > 0 and report.captured_graphs > 0
    assert report.capture_faults == () and len(report.given_up_steps) == 2
    line = "given up, graphs of kernels instead: the coarse stage's decode step, one CUDA kernel for many tokens: "
    assert line in str(report)
    failing.kind = ""
    free_memory(fast)
    tokens(fast, generator, **texts(SMALL, [6]), **OPTIONS["sampled"])
    assert launches and acceleration_report(fast).given_up_steps == ()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Timed]:
    """Which kinds of step a trial has timed; `trial.faster` is the one of less time."""
    timed = Timed()

    def seconds(run: Callable[[], None], device: torch.device) -> float:
        run()
        timed.append(Failing.kind_of(timed.steps[run]))
        return 0.1 if timed[-1] == timed.faster else 0.2

    class Remembering(CallCapturer):
        def capture(self, step: Any, generator: Any) -> Any:
            replay = super().capture(step, generator)
            timed.steps[replay] = step
            return replay

    monkeypatch.setattr(graphs, "make_capturer", lambda device: Remembering())
    monkeypatch.setattr(step_trial, "_timed", seconds)
    monkeypatch.setenv(step_choice.VARIABLE, "trial")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_choice, "_made", {})
    # A CPU stands in for a GPU.
    monkeypatch.setattr(token_run, "_is_gpu", lambda device: True)
    yield timed


class Timed(list):
    def __init__(self) -> None:
        super().__init__()
        self.faster = ""
        self.steps: dict[Any, Any] = {}


@pytest.fixture
def torch_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that torch's own operations take."""
    counted = [0]

    def step(*arguments: Any) -> Tensor:
        counted[0] += 1
        return reference.decode_step(*arguments)

    monkeypatch.setattr(causal, "reference", SimpleNamespace(decode_step=step))
    return counted


@pytest.mark.parametrize("faster", step_choice.STEPS)
@pytest.mark.parametrize("lengths", ([6], [3] * 5), ids=("one row", "five rows, too many for one kernel"))
@pytest.mark.parametrize("options", ("sampled", "greedy"))
def test_a_trial_chooses_once_and_changes_no_token(
    small_model: Any,
    generator: PhiloxGenerator,
    launches: list[int],
    torch_steps: list[int],
    trial: Timed,
    options: str,
    lengths: list[int],
    faster: str,
    tmp_path: Path,
) -> None:
    rows = len(lengths)
    kinds = {"kernels", "torch"} | ({"persistent"} if rows <= token_run.MOST_ROWS else set())
    trial.faster = faster
    expected_step = faster if faster in kinds else "kernels"
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, lengths), **OPTIONS[options])
    for model in range(2):
        if model:  # as a new process would find it
            step_choice._made.clear()
        fast = accelerated_copy(small_model, speculate=False)
        for _ in range(2):
            launches.clear()
            torch_steps[0] = 0
            got, state_after = tokens(fast, generator, **texts(SMALL, lengths), **OPTIONS[options])
            assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
            assert torch.equal(state_after, state)
        assert len(trial) == 3 * len(kinds) and set(trial) == kinds, "three rounds, once"
        assert bool(torch_steps[0]) == (expected_step == "torch"), "what was chosen runs"
    (file,) = (tmp_path / "bark_accel").iterdir()
    kept = json.loads(file.read_text())
    assert kept["step"] == expected_step
    assert kept["key"].startswith("cpu, 2 layers of 32") and f"{rows} rows" in kept["key"]
    assert {choice.step for choice in step_choice.made().values()} == {expected_step}
    if expected_step == "persistent":
        assert launches
    # `is_chosen` is the fixture's here: of a real one, test_step_choice.py.


def test_torchs_own_step_where_it_is_asked_for(
    small_model: Any,
    capturer: CallCapturer,
    generator: PhiloxGenerator,
    torch_steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_run, "_is_gpu", lambda device: True)
    monkeypatch.setenv(step_choice.VARIABLE, "torch")
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, [4, 9]), **OPTIONS["sampled"])
    assert torch_steps == [0]
    fast = accelerated_copy(small_model, speculate=False)
    got, state_after = tokens(fast, generator, **texts(SMALL, [4, 9]), **OPTIONS["sampled"])
    assert all(torch.equal(got[stage], expected[stage]) for stage in expected) and torch.equal(state_after, state)
    assert torch_steps[0] > 0 and capturer.replayed > 0


def test_torchs_own_step_that_cannot_be_captured(
    small_model: Any, generator: PhiloxGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing("torch")
    monkeypatch.setattr(graphs, "make_capturer", lambda device: failing)
    monkeypatch.setattr(token_run, "_is_gpu", lambda device: True)
    monkeypatch.setenv(step_choice.VARIABLE, "torch")
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, _ = tokens(plain, generator, **texts(SMALL, [6]), **OPTIONS["sampled"])
    fast = accelerated_copy(small_model, speculate=False)
    with pytest.warns(UserWarning, match="kernels one by one take the place of torch's own step in a CUDA graph: Runt"):
        got, _ = tokens(fast, generator, **texts(SMALL, [6]), **OPTIONS["sampled"])
    assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
    assert failing.refused == 2 and failing.replayed > 0 and len(acceleration_report(fast).given_up_steps) == 2
