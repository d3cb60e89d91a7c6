"""Shared steps as graphs, as far as a CPU can tell: what captures is replaced, all around it is the real thing."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.call_capturer import CallCapturer
from support.engine_requests import Asked, assert_as_alone, finished
from support.parity import accelerated_copy

from bark_accel import BarkEngine
from bark_accel.engine import scheduler as scheduling
from bark_accel.engine.engine import make_row
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.shared_steps import SharedSteps
from bark_accel.engine.slots import Slots
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import multinomial
from bark_accel.ops.backend import get_ops
from bark_accel.patches.engine import ModelSource
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

ROWS = slice(0, 20)


@pytest.fixture
def capturer(monkeypatch) -> CallCapturer:
    double = CallCapturer()
    monkeypatch.setattr("bark_accel.patches.engine.make_capturer", lambda device: double)
    return double


def asked(count: int) -> list[Asked]:
    options = [{}, {"semantic_temperature": 0.6}, {"repetition_penalty": 1.3}, {"do_sample": False}]
    inputs = [{**texts(SMALL, [1 + i % 7], seed=i), **options[i % 4]} for i in range(count)]
    lengths = [{"semantic_max_new_tokens": 20 + 9 * (i % 5)} for i in range(count)]
    return [Asked({**inputs[i], **lengths[i]}, seed=i, policy=[None, "preview"][i % 2]) for i in range(count)]


@pytest.mark.parametrize("weights", ["same", "float16", "int8"])
def test_everybody_has_what_he_has_alone(capturer, weights, hold):
    model = accelerated_copy(build(SMALL), weights=weights)
    wanted = asked(11)
    with BarkEngine(model, max_rows=5, max_queued=20) as engine:
        with hold():
            requests = [engine.submit(**one.inputs, seed=one.seed, policy=one.policy) for one in wanted]
        for one, request in zip(wanted, requests, strict=True):
            assert_as_alone(model, one, finished(request))
    # 1, 2, 4 and all 5 slots, of two stages: with the end of speech or without, one codebook, the other, or both.
    assert 0 < capturer.captured <= 4 * (2 + 3) and capturer.replayed > 5 * capturer.captured


def test_they_can_be_turned_off(capturer, monkeypatch):
    model = accelerated_copy(build(SMALL), cuda_graphs=False)
    assert ModelSource(model).make_capturer() is None
    monkeypatch.setenv("BARK_ACCEL_CUDA_GRAPHS", "0")
    assert ModelSource(accelerated_copy(build(SMALL))).make_capturer() is None
    monkeypatch.setenv("BARK_ACCEL_CUDA_GRAPHS", "1")
    assert ModelSource(accelerated_copy(build(SMALL))).make_capturer() is capturer


def test_steps_that_cannot_be_captured_run_one_by_one(capturer, monkeypatch):
    def fails(step, generator):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capturer, "capture", fails)
    model, wanted = accelerated_copy(build(SMALL), speculate=False), asked(3)
    with pytest.warns(UserWarning, match=r"slower, with the same result. RuntimeError: operation not permitted"):  # noqa: SIM117
        with BarkEngine(model, max_rows=3) as engine:
            requests = [finished(engine.submit(**one.inputs, seed=one.seed, policy=one.policy)) for one in wanted]
    for one, request in zip(wanted, requests, strict=True):
        assert_as_alone(model, one, request)


def test_what_one_model_cannot_capture_leaves_the_other_its_graphs(monkeypatch):
    made: list[CallCapturer] = []

    def make_capturer(device):
        made.append(CallCapturer())
        return made[-1]

    def fails(step, generator):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("bark_accel.patches.engine.make_capturer", make_capturer)
    model, one = accelerated_copy(build(SMALL), speculate=False), asked(1)[0]
    with pytest.warns(UserWarning, match="could not be captured"), BarkEngine(model, max_rows=3) as engine:
        made[0].capture = fails
        request = finished(engine.submit(**one.inputs, seed=one.seed, policy=one.policy))
    assert_as_alone(model, one, request)
    assert [capturer.replayed > 0 for capturer in made] == [False, True], "the semantic stage's, the coarse stage's"


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_idle_slots_are_masked_and_nothing_is_looked_at(device, monkeypatch):
    """A tensor on the meta device has no data to look at, or to wait for."""
    place = torch.device(device)
    monkeypatch.setattr("bark_accel.ops.checks.is_capturing", lambda tensor: tensor.is_meta)
    monkeypatch.setattr("bark_accel.ops.checks._require_apart", lambda *arguments: None)
    module = build(SMALL).to(place).semantic
    weights, spec = transformer_weights("semantic", module), transformer_spec(module)
    model = CausalModel(weights, spec, get_ops("torch", place))
    cache = KVCache.empty(spec, 6, torch.float32, place)
    for tensor in (cache.keys, cache.values):
        tensor.fill_(0.5)
    cache.length.copy_(torch.tensor([3, 5, 2, 7, 0, 1]))
    capturer = CallCapturer()
    shared = SharedSteps(model, cache, capturer)
    with torch.no_grad():
        one, two = shared.scores([0, 2], torch.ones(2, 1, dtype=torch.int64, device=place), ROWS)
    assert one.shape == two.shape == (20,) and capturer.replayed == 1
    if device == "meta":
        return
    written = (cache.keys != 0.5).any(4).any(2).any(0)  # [slots, positions]
    assert written.nonzero().tolist() == [[0, 3], [2, 2]]
    assert cache.length.tolist() == [4, 5, 3, 7, 0, 1], "of the busy slots alone"
    alone = KVCache(cache.keys[:, 2:3], cache.values[:, 2:3], torch.tensor([2]))
    expected = model.step_logits(torch.ones(1, 1, dtype=torch.int64), alone, ROWS)[:, 0]
    torch.testing.assert_close(two, expected[0])
    for slot in range(6):
        shared.scores([slot], torch.ones(1, 1, dtype=torch.int64), ROWS)
    assert {slots for slots, *_ in shared._replays} == {1, 2, 4, 6}, "powers of two, or all"


@torch.no_grad()
def test_masks_of_many_sets_of_slots(monkeypatch):
    monkeypatch.setattr("bark_accel.engine.shared_steps._MASKS", 3)
    module = build(SMALL).semantic
    weights, spec = transformer_weights("semantic", module), transformer_spec(module)
    model = CausalModel(weights, spec, get_ops("native", torch.device("cpu")))
    cache = KVCache.empty(spec, 6, torch.float32, torch.device("cpu"))
    shared = SharedSteps(model, cache, None)
    cache.length.zero_()
    first = shared.scores([4], torch.ones(1, 1, dtype=torch.int64), ROWS)[0].clone()
    for slots in ([0, 1], [2, 5], [3], [1, 4], [0, 4, 5]):
        cache.length.zero_()
        for scores in shared.scores(slots, torch.ones(len(slots), 1, dtype=torch.int64), ROWS):
            assert torch.equal(scores, first)
        assert len(shared._masks) <= 3


@torch.no_grad()
def test_a_semantic_token_is_read_back_outside_of_draws(fast):
    """A tensor on the meta device cannot be read back: neither a draw does that, nor the next input."""
    source = ModelSource(fast)
    row = make_row(source, {**texts(SMALL, [4]), "do_sample": False}, seed=1)
    row.start(Slots(source.models, 1).take())
    step = row.step
    scores = step.alone()
    drawn = row.draw(scores.to("meta"))
    assert drawn.is_meta and drawn.shape == (1,)
    row.note(drawn, torch.tensor([7]))
    assert row.step.feed.tokens.is_meta and row.step.feed.tokens.shape == (1, 1)
    assert row._semantic.tokens[-1].tolist() == [7]


@torch.no_grad()
@pytest.mark.parametrize("policy", [None, "exact", "preview"])
@pytest.mark.parametrize("stage, backend", [("semantic", "native"), ("semantic", "torch"), ("coarse", "torch")])
def test_a_draw_that_was_not_waited_for_fails_its_row_alone(stage, backend, policy, monkeypatch):
    """A CPU stands in for a device: what was not drawn is told before sound or the next window's prompt is made of it.

    Not in the coarse stage of the compiled ops: those of a GPU feed such a token as NaN, those of a CPU refuse it.
    """
    model = accelerated_copy(build(SMALL), speculate=False, backend=backend)
    options = {**texts(SMALL, [3]), "do_sample": True, "semantic_min_new_tokens": 40, "semantic_max_new_tokens": 40}
    alone = [Asked(options, seed=seed, policy=policy) for seed in range(3)]
    source = ModelSource(model)
    scheduler = Scheduler(source.models, Slots(source.models, 3))
    rows = [make_row(source, options, seed=seed, policy=policy) for seed in range(3)]
    for row in rows:
        scheduler.add(row)
    scores, steps, poisoned_model = SharedSteps.scores, [], source.models[["semantic", "coarse"].index(stage)]

    def poisoned(self, slots, ids, of):
        logits = scores(self, slots, ids, of)
        if self._model is poisoned_model:
            steps.append(slots)
            if len(steps) == 10:
                logits[1] = torch.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(SharedSteps, "scores", poisoned)
        patch.setattr(multinomial, "is_lazy", lambda: False)
        patch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)
        patch.setattr(scheduling, "read_back", lambda drawn: torch.cat(list(drawn)).clone().split(1))
        while scheduler.busy:
            scheduler.turn()
    with pytest.raises(ValueError, match=rf"^{stage} stage .* fused_multinomial: .* without NaN .* row 0; its weights"):
        rows[1].request.result(0)
    assert rows[1].request.seconds_ready == 0
    for place in (0, 2):
        assert_as_alone(model, alone[place], rows[place].request)


@torch.no_grad()
def test_tokens_of_a_turn_are_read_back_at_once(monkeypatch):
    reads, read_back = [], scheduling.read_back
    monkeypatch.setattr(scheduling, "read_back", lambda drawn: reads.append(len(drawn)) or read_back(drawn))
    source = ModelSource(accelerated_copy(build(SMALL), speculate=False))
    scheduler = Scheduler(source.models, Slots(source.models, 5))
    options = {**texts(SMALL, [3]), "semantic_min_new_tokens": 40, "semantic_max_new_tokens": 40}
    for seed in range(5):
        scheduler.add(make_row(source, options, seed=seed))
    while scheduler.busy:
        scheduler.turn()
    assert reads == [5] * 39, "all tokens but those behind the prompts, and none of the coarse stage"
