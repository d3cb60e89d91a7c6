"""Windows of the fine stage as one graph: stock's codes and random state, one capture, one wait, no silent loss."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.call_capturer import CallCapturer
from support.capture_rules import capture_rules
from support.launches import Launches
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.waiting import LIMIT_S
from torch import nn

from bark_accel import AudioStreamer, acceleration_report, free_memory, stream
from bark_accel.decoding.sampling import SampleRules
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import cuda, native, reference
from bark_accel.ops.backend import get_ops
from bark_accel.ops.interface import Ops
from bark_accel.stages import fine_graphs
from bark_accel.stages.fine import FineStage
from bark_accel.stages.fine_graphs import MAX_KEPT, MOST_ROWS, WindowGraph, WindowGraphs
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FineSpec
from bark_accel.transformer.precision import convert

META = torch.device("meta")
SHORT: dict[str, Any] = {"semantic_max_new_tokens": 30, "do_sample": True}
LONG: dict[str, Any] = {"semantic_max_new_tokens": 90, "do_sample": True, "fine_temperature": 0.5}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> CallCapturer:
    """What every window of the test is captured with, on the CPU."""
    double = CallCapturer()
    monkeypatch.setattr(fine_graphs, "make_capturer", lambda device: double)
    monkeypatch.setattr(fine_graphs, "has_graphs", lambda device: True)
    return double


@pytest.mark.parametrize("temperature", (None, 0.5))
@pytest.mark.parametrize("history", (0, 30))
@pytest.mark.parametrize("lengths", ([6], [4, 9, 2], [3] * (MOST_ROWS + 1)), ids=("one row", "three rows", "five rows"))
def test_codes_and_generator_are_stocks(
    small_model: Any, windows: CallCapturer, lengths: list[int], history: int, temperature: float | None
) -> None:
    fast = accelerated_copy(small_model)
    voice = {"history_prompt": preset(SMALL, 20, history)} if history else {}
    for seed in (0, 4):  # captured, and replayed
        options = {**SHORT, **voice, "fine_temperature": temperature}
        assert_equal_to_stock(small_model, fast, seed, **texts(SMALL, lengths), **options)
    assert windows.captured == (len(lengths) <= MOST_ROWS) and bool(windows.replayed) == bool(windows.captured)


def test_later_windows_take_the_same_graph(small_model: Any, windows: CallCapturer) -> None:
    fast = accelerated_copy(small_model)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [5]), **LONG)
    assert windows.captured == 1 and windows.replayed >= 2


@pytest.mark.parametrize("policy", ("low_latency", "exact"))
def test_chunks_of_a_stream_take_the_same_graph(small_model: Any, windows: CallCapturer, policy: str) -> None:
    """Each begins at another frame of its window."""
    heard = []
    for options in ({"cuda_graphs": False}, {}):
        fast = accelerated_copy(small_model, **options)
        torch.manual_seed(3)
        streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=5, max_chunk_frames=10, lookahead_frames=2)
        heard.append(torch.cat(list(stream(fast, streamer=streamer, **texts(SMALL, [6]), **LONG)), 1))
    torch.testing.assert_close(*heard, rtol=0, atol=1e-6)
    assert windows.captured == 1 and windows.replayed >= 2


def test_fitting_windows_have_a_graph_for_each_length(small_model: Any, windows: CallCapturer) -> None:
    plain, fast = (accelerated_copy(small_model, fit_windows=True, cuda_graphs=graphs) for graphs in (False, True))
    for tokens in (8, 9, 30, 30):
        options = {**LONG, "semantic_max_new_tokens": tokens}
        expected, got = (run(m, 0, **texts(SMALL, [6]), **options) for m in (plain, fast))
        assert torch.equal(got[0]["fine"], expected[0]["fine"]) and torch.equal(got[2], expected[2])
    assert windows.captured == 2 and windows.replayed == 4


def test_kept_and_renewed(small_model: Any, windows: CallCapturer) -> None:
    stock = copy.deepcopy(small_model)
    fast = accelerated_copy(stock)

    def captures(rows: int = 1, **options: Any) -> int:
        before = windows.captured
        assert_equal_to_stock(stock, fast, **texts(SMALL, [6, 3, 8][:rows]), **SHORT, **options)
        return windows.captured - before

    assert captures() == 1 and captures() == 0
    assert captures(fine_temperature=0.7) == 1 and captures(rows=2) == 1
    assert captures() == 0 and acceleration_report(fast).captured_graphs == 3
    for model in (stock, fast):  # new values where they were
        for parameter in model.fine_acoustics.parameters():
            parameter.data.copy_(parameter.data.roll(1, 0))
    assert captures() == 0
    for model in (stock, fast):  # as a move to another device and back would have it
        layer = model.fine_acoustics.layers[1].mlp.in_proj
        layer.weight = nn.Parameter(layer.weight.detach() * 1.5)
    assert captures() == 1
    free_memory(fast)
    assert acceleration_report(fast).captured_graphs == 0 and captures() == 1


def test_a_16_bit_models_vectors_are_read_anew(small_model: Any, windows: CallCapturer) -> None:
    plain, fast = (accelerated_copy(copy.deepcopy(small_model).half(), cuda_graphs=g) for g in (False, True))
    codes = []
    for _ in range(2):
        expected, got = (run(m, 0, **texts(SMALL, [6]), **SHORT)[0]["fine"] for m in (plain, fast))
        assert torch.equal(got, expected)
        codes.append(got)
        for model in (plain, fast):
            norm = model.fine_acoustics.layers[0].layernorm_1.weight
            norm.data.copy_(torch.linspace(-2, 2, len(norm)))
    assert windows.captured == 1 and not torch.equal(*codes)


def test_shapes_do_not_pile_up(small_model: Any, windows: CallCapturer) -> None:
    fast = accelerated_copy(small_model)
    for i in range(MAX_KEPT + 2):
        run(fast, 0, **texts(SMALL, [6]), semantic_max_new_tokens=3, fine_temperature=0.5 + i / 10)
    assert windows.captured == MAX_KEPT + 2 and acceleration_report(fast).captured_graphs == MAX_KEPT


def test_scores_that_are_not_numbers_are_refused(small_model: Any, windows: CallCapturer) -> None:
    fast = accelerated_copy(small_model)
    run(fast, 0, **texts(SMALL, [6]), **SHORT)
    fast.fine_acoustics.lm_heads[2].weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"fine stage of the Bark model: .*without NaN .* got one in row 0"):
        run(fast, 0, **texts(SMALL, [6]), **SHORT)


@torch.no_grad()
@pytest.mark.usefixtures("like_a_device")
def test_a_captured_sampler_leaves_statuses_that_are_found_behind_the_graph(
    small_model: Any, windows: CallCapturer
) -> None:
    def sample(logits: torch.Tensor, noise: Any, *rules: Any) -> torch.Tensor:
        return reference.sample(logits, noise, *rules)

    stage, tokens = fine_stage(small_model, replace(Ops.of(reference), fused_sample=sample))
    stage._weights.heads[2].weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"fine stage of the Bark model: .*without NaN .* got one in row 0"):
        stage.run(tokens, [None], FineSampling(0.5))
    assert windows.captured == windows.replayed == 1


def fine_stage(model: Any, ops: Ops, layers: int = 0, precision: str = "same") -> tuple[FineStage, torch.Tensor]:
    """A stage with graphs and a window of its own model, and coarse tokens that fill it."""
    module = copy.deepcopy(model.fine_acoustics)
    spec = transformer_spec(module)
    fine = FineSpec(SMALL.semantic_vocab, SMALL.codebook_size, 2, 8, spec.block_size // 2, spec.block_size)
    with torch.no_grad():
        weights = transformer_weights("fine", module)
        weights = convert(replace(weights, layers=weights.layers[:1] * layers or weights.layers), precision)
    coarse = torch.randint(0, fine.codebook_size, (1, fine.max_input_frames, fine.num_coarse_codebooks))
    tokens = coarse + fine.semantic_vocab_size + torch.arange(fine.num_coarse_codebooks) * fine.codebook_size
    return FineStage(weights, spec, fine, ops, graphs=WindowGraphs()), tokens.flatten(1)


@torch.no_grad()
@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("precision", ("float16", "int8"))
@pytest.mark.parametrize("layers, most", [(12, 950), (24, 1814)])
def test_nodes_of_a_windows_graph(
    small_model: Any, windows: CallCapturer, monkeypatch: pytest.MonkeyPatch, layers: int, most: int, precision: str
) -> None:
    """All six passes are in it, with what keeps the frames before the window; around it are 20 launches and a wait."""
    counts: list[Launches] = []

    def capture(step: Any, generator: Any) -> Any:
        with Launches() as launched:
            step()
        counts.append(launched)
        return lambda: None

    monkeypatch.setattr(windows, "capture", capture)
    on_cpu = Ops.of(native)
    ops = replace(cuda.OPS, fused_sample=on_cpu.fused_sample, codebook_embedding_sum=on_cpu.codebook_embedding_sum)
    stage, tokens = fine_stage(small_model, ops, layers, precision)
    with Launches() as around:
        stage.run(tokens, [None], FineSampling(0.5))
    (graph,) = counts
    assert graph.counts["fused_sample"] == 6 and graph.counts["where"] == 6
    assert 6 * 6 * layers < graph.counts.total() <= most * 6 / 6, graph.counts
    outside = around.counts - graph.counts
    assert outside["exponential_"] == 6 and outside["_local_scalar_dense"] == 1, outside
    assert outside.total() <= 40, outside


@torch.no_grad()
@pytest.mark.parametrize("backend", ("torch", "native"))
@pytest.mark.parametrize("temperature", (None, 0.5))
@pytest.mark.parametrize("precision", ("same", "float16", "int8", "w8a8"))
def test_what_is_captured_keeps_the_rules(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, precision: str, temperature: float | None, backend: str
) -> None:
    """On tensors without data: no look at any, no copy from or to the host, no random number."""
    monkeypatch.setattr("bark_accel.ops.checks.is_capturing", lambda tensor: tensor.is_meta)
    captured = []

    class OnMeta:
        def capture(self, step: Any, generator: Any) -> Any:
            assert generator is None
            with capture_rules(META):
                step()
            captured.append(step)
            return step

    ops = get_ops("torch", META)
    if backend == "native":  # torch's products as on a GPU; our two kernels have no meta version of a look at data
        ops = replace(cuda.OPS, fused_sample=ops.fused_sample, codebook_embedding_sum=ops.codebook_embedding_sum)
    module = copy.deepcopy(small_model.fine_acoustics).to(META)
    spec, (on_cpu, _) = transformer_spec(module), fine_stage(small_model, ops)
    weights = convert(transformer_weights("fine", module), precision)
    stage = FineStage(weights, spec, on_cpu.spec, ops)
    graph = WindowGraph(OnMeta(), weights, on_cpu.spec, (2, on_cpu.spec.max_input_frames))

    def scores(own: Any, codes: torch.Tensor, codebook: int) -> torch.Tensor:
        return stage._scores(own, codes, codebook, slice(0, codes.shape[1]))

    assert graph._capture(weights, ops, scores, FineSampling(temperature)), graph.fault
    assert len(captured) == 1


@torch.no_grad()
def test_that_the_rules_would_tell() -> None:
    on_device, on_host = torch.zeros(3, device=META), torch.zeros(3)
    for forbidden in (
        lambda: on_host.sum().item(),
        lambda: on_device.nonzero(),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: on_device.copy_(on_host),
        lambda: on_device.exponential_(),
    ):
        with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), capture_rules(META):
            forbidden()
    with capture_rules(META):
        (on_device + 1).mul_(2).zero_()


@torch.no_grad()
def test_what_a_graph_reads_lives_as_long_as_the_graph(
    small_model: Any, windows: CallCapturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real graph holds addresses, no tensors: what it captured is gone but for what the object keeps."""
    read: list[weakref.ref] = []
    rules_of = SampleRules.of.__func__  # type: ignore[attr-defined]

    def spy(rows: Any, device: torch.device) -> SampleRules:
        rules = rules_of(SampleRules, rows, device)
        read.extend(weakref.ref(t) for t in rules.arguments if isinstance(t, torch.Tensor))
        return rules

    def capture(step: Any, generator: Any) -> Any:
        step()
        return lambda: None

    monkeypatch.setattr(windows, "capture", capture)
    monkeypatch.setattr(fine_graphs.SampleRules, "of", spy)
    stage, tokens = fine_stage(small_model, Ops.of(native))
    stage.run(tokens, [None], FineSampling(0.5))
    gc.collect()
    assert len(read) == 2 and all(tensor() is not None for tensor in read)


class Failing(CallCapturer):
    """As torch: the error at the end of a capture hides the one that spoilt it."""

    def capture(self, step: Any, generator: Any) -> Any:
        step()
        self.captured += 1
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        except RuntimeError:
            raise RuntimeError("capture invalidated")  # noqa: B904


@pytest.mark.parametrize("lengths", ([6], [4, 9]))
def test_what_cannot_be_captured_runs_pass_by_pass_and_says_so(
    small_model: Any, windows: CallCapturer, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    failing = Failing()
    monkeypatch.setattr(fine_graphs, "make_capturer", lambda device: failing)
    fast = accelerated_copy(small_model)
    with pytest.warns(UserWarning, match="the fine stage's window could not be captured .* not permitted when"):
        assert_equal_to_stock(small_model, fast, **texts(SMALL, lengths), **LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal_to_stock(small_model, fast, 1, **texts(SMALL, lengths), **LONG)
    report = acceleration_report(fast)
    fault = "the fine stage's window: RuntimeError: operation not permitted when stream is capturing"
    assert report.capture_faults == (fault,) and f"not captured, kernel by kernel: {fault}" in str(report)
    assert report.fine_window == "kernel by kernel, it could not be captured"
    assert failing.captured == 1
    free_memory(fast)
    assert acceleration_report(fast).capture_faults == ()


def test_a_listener_who_leaves_stops_before_a_window(small_model: Any, windows: CallCapturer) -> None:
    stage, tokens = fine_stage(small_model, Ops.of(native))
    calls: list[int] = []

    def leave() -> None:
        calls.append(windows.replayed)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(tokens, [None], FineSampling(0.5, before_pass=leave))
    assert calls == [0] and windows.captured == 0


def test_a_window_is_one_call_of_advance(small_model: Any, windows: CallCapturer) -> None:
    stage, tokens = fine_stage(small_model, Ops.of(native))
    done: list[tuple[int, int]] = []
    stage.run(tokens, [None], FineSampling(None), lambda *given: done.append(given))
    assert done == [(1, 1)]
    stage.run(torch.cat([tokens, tokens], 1), [None], FineSampling(None), lambda *given: done.append(given))
    assert done[1:] == [(i + 1, len(done) - 1) for i in range(len(done) - 1)] and len(done) > 2


def test_a_callers_draw_and_an_infinite_temperature_go_pass_by_pass(small_model: Any, windows: CallCapturer) -> None:
    stage, tokens = fine_stage(small_model, Ops.of(native))
    drawn = stage.run(tokens, [None], FineSampling(0.5, draw=lambda logits: logits.argmax(1)))
    assert torch.equal(drawn, stage.run(tokens, [None], FineSampling(None)))
    assert windows.captured == 1
    stage.run(tokens, [None], FineSampling(float("inf")))
    assert windows.captured == 1


def test_switched_off(small_model: Any, windows: CallCapturer, monkeypatch: pytest.MonkeyPatch) -> None:
    off = accelerated_copy(small_model, cuda_graphs=False)
    assert_equal_to_stock(small_model, off, **texts(SMALL, [6]), **SHORT)
    assert acceleration_report(off).fine_window == "kernel by kernel, cuda_graphs=False"
    monkeypatch.setenv("BARK_ACCEL_CUDA_GRAPHS", "0")
    by_environment = accelerated_copy(small_model)
    assert_equal_to_stock(small_model, by_environment, **texts(SMALL, [6]), **SHORT)
    assert acceleration_report(by_environment).fine_window == "kernel by kernel, BARK_ACCEL_CUDA_GRAPHS=0"
    assert windows.captured == 0


def test_nothing_is_captured_on_a_cpu(small_model: Any) -> None:
    fast = accelerated_copy(small_model)
    run(fast, 0, **texts(SMALL, [6]), **SHORT)
    assert acceleration_report(fast).captured_graphs == 0


def test_two_threads_have_graphs_of_their_own(small_model: Any, windows: CallCapturer) -> None:
    stage, tokens = fine_stage(small_model, Ops.of(native))
    expected = stage.run(tokens, [None], FineSampling(None))
    results: list[Any] = [None, None]
    started = threading.Barrier(2)

    def work(i: int) -> None:
        started.wait(LIMIT_S)
        results[i] = [stage.run(tokens, [None], FineSampling(None)) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(codes, expected) for its in results for codes in its)


def test_copies_start_without(small_model: Any, windows: CallCapturer) -> None:
    fast = accelerated_copy(small_model)
    run(fast, 0, **texts(SMALL, [6]), **SHORT)
    assert acceleration_report(copy.deepcopy(fast)).captured_graphs == 0
    kept = pickle.loads(pickle.dumps(WindowGraphs("a window", 3)))
    assert (kept.count, kept.what, kept.most, kept.fault) == (0, "a window", 3, None)
