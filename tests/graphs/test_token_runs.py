"""Many tokens in one kernel, which ends with the speech, against one token after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
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

from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding.sampling import TokenRange
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import cpu, step_choice, token_run
from bark_accel.ops.interface import StepCache, StepWeights
from bark_accel.stages import semantic
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
    monkeypatch.setattr(token_run, "is_chosen", lambda weights, cache: token_run.misfit(weights, cache) is None)
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
    monkeypatch.setattr(graphs, "MAX_BLOCK_TOKENS", 3)
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
    assert graphs.turns([a] * 9) == ((a,), 9)
    assert graphs.turns([a, b] * 3) == ((a, b), 6)
    assert graphs.turns([a, a, a, b, b]) == ((a,), 3)
    assert graphs.turns([a, b, b]) == ((a, b), 2)
    assert graphs.turns([b]) == ((b,), 1)


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


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Which ways of drawing tokens a trial has timed; `trial.faster` is the one of less time."""
    timed = Timed()

    def seconds(run: Callable[[], None], device: torch.device) -> float:
        run()
        timed.append({"by_graphs": "kernels", "as_one": "persistent"}[run.__name__])
        return 0.1 if timed[-1] == timed.faster else 0.2

    monkeypatch.setattr(graphs, "_seconds", seconds)
    monkeypatch.setenv(step_choice.VARIABLE, "trial")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_choice, "_made", {})
    yield timed


class Timed(list):
    faster = ""


@pytest.mark.parametrize("faster", step_choice.STEPS)
@pytest.mark.parametrize("options", ("sampled", "greedy"))
def test_a_trial_chooses_once_and_changes_no_token(
    small_model: Any,
    capturer: CallCapturer,
    generator: PhiloxGenerator,
    launches: list[int],
    trial: Timed,
    options: str,
    faster: str,
    tmp_path: Path,
) -> None:
    trial.faster = faster
    plain = accelerated_copy(small_model, cuda_graphs=False, speculate=False)
    expected, state = tokens(plain, generator, **texts(SMALL, [6]), **OPTIONS[options])
    for model in range(2):
        if model:  # as a new process would find it
            step_choice._made.clear()
        fast = accelerated_copy(small_model, speculate=False)
        for _ in range(2):
            launches.clear()
            got, state_after = tokens(fast, generator, **texts(SMALL, [6]), **OPTIONS[options])
            assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
            assert torch.equal(state_after, state)
        assert len(trial) == 6 and set(trial) == {"kernels", "persistent"}, "three rounds, once"
    (file,) = (tmp_path / "bark_accel").iterdir()
    kept = json.loads(file.read_text())
    assert kept["step"] == faster and kept["key"].startswith("cpu, 2 layers of 32") and "1 rows" in kept["key"]
    assert {choice.step for choice in step_choice.made().values()} == {faster}
    if faster == "persistent":
        assert launches
    # `is_chosen` is the fixture's here: of a real one, test_step_choice.py.
