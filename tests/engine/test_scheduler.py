"""Who comes first in a turn, and how much of it anybody has."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.engine_requests import LONG, SHORT, Asked, assert_as_alone
from support.parity import accelerated_copy

from bark_accel import (
    AudioStreamer,
    SpeechRequest,
)
from bark_accel.engine import request as requesting
from bark_accel.engine import scheduler as scheduling
from bark_accel.engine.engine import make_row
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.slots import Slots, Step
from bark_accel.patches.engine import ModelSource
from bark_accel.stages import fine


class Clock:
    """A clock that goes on by itself in nothing."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Of schedulers and requests: who comes first depends on no time that this machine needs."""
    clock = Clock()
    for module in (scheduling, requesting):
        monkeypatch.setattr(module, "time", clock)
    return clock


@torch.no_grad()
def test_others_go_on_between_the_passes_of_a_window(fast, monkeypatch):
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 2))
    rows = [make_row(source, SHORT, seed=1), make_row(source, LONG, seed=2)]
    passes = []
    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", lambda *args: passes.append(None) or forward(*args))
    for row in rows:
        scheduler.add(row)
    turns = 0
    while scheduler.busy:
        before, stepped, short_is_done = len(passes), rows[1].step, rows[0].request.done()
        scheduler.turn()
        assert len(passes) - before <= 1
        if not short_is_done and len(passes) > before:
            turns += 1
            assert rows[1].step is not stepped
    assert turns == 6, "a window of the short one, while the long one has tokens to come"


@torch.no_grad()
@pytest.mark.parametrize("policy", [None, "preview"])
def test_who_runs_dry_comes_before_the_fine_stage_of_others(fast, policy, monkeypatch):
    """A stream that nothing was heard of yet; a waveform that is wanted whole has no such haste."""
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 2))
    first = make_row(source, SHORT, seed=1)
    first.request.waits_from += 1
    scheduler.add(first)
    while first.request.status != "fine":
        scheduler.turn()
    second = make_row(source, LONG, seed=2, policy=policy)
    scheduler.add(second)
    scheduler.turn()
    passes = []
    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", lambda *args: passes.append(None) or forward(*args))
    for _ in range(3):
        scheduler.turn()
    assert len(passes) == (3 if policy is None else 0)
    while scheduler.busy:
        scheduler.turn()
    assert_as_alone(fast, Asked(SHORT, seed=1), first.request)


@torch.no_grad()
@pytest.mark.parametrize("chained", [False, True])
def test_what_is_heard_later_does_not_hold_up_what_is_heard_before(fast, chained, monkeypatch):
    """Sentence after sentence, as streams: the second has its tokens while the first is not all there."""
    monkeypatch.setattr("bark_accel.engine.request._FIRST_SOUND_S", 0.0)
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 1))
    lengths = {"policy": "low_latency", "first_chunk_frames": 40}
    first = make_row(source, LONG, seed=1, **lengths)
    second = make_row(source, LONG, seed=2, after=first.request if chained else None, **lengths)
    for row in (first, second):
        scheduler.add(row)
    while not first.request.done() and second.request.seconds_ready == 0:
        scheduler.turn()
    assert first.request.done() == chained, "the second has heard nothing yet, and would be the more urgent one"
    while scheduler.busy:
        scheduler.turn()
    for seed, row in ((1, first), (2, second)):
        assert_as_alone(fast, Asked(LONG, seed, "low_latency", {"first_chunk_frames": 40}), row.request)


def test_when_requests_in_line_are_due(fast):
    source = ModelSource(fast)
    line = [make_row(source, SHORT, seed=0, policy="preview").request]
    for seed in range(1, 2000):
        line.append(SpeechRequest(AudioStreamer(fast), seed, None, whole=False, after=line[-1]))
    assert line[-1].due - line[0].due == pytest.approx(1999 * 30), "each long after the one before"
    second = torch.zeros(1, line[0].sampling_rate)
    for request in line[:2]:
        request.deliver(second)
        request.deliver(second)
        request.finish(None)
    assert line[2].due - line[0].due == pytest.approx(2), "once those before are done, when they have been heard"
    assert line[2]._after is None, "which are kept no longer"
    line[2].deliver(second)
    assert line[2].due - line[0].due == pytest.approx(3)


def test_a_line_is_shortened_while_it_is_walked(fast):
    """By the thread of another engine, which has a request of the line."""

    class Forgetful(SpeechRequest):
        @property
        def _after(self):
            before, self._before = self._before, None
            return before

        @_after.setter
        def _after(self, before):
            self._before = before

    first = make_row(ModelSource(fast), SHORT, seed=0, policy="preview").request
    second = Forgetful(AudioStreamer(fast), 1, None, whole=False, after=first)
    assert second.due == first.due + 30


def test_when_a_request_behind_another_processs_is_due(fast, clock):
    source = ModelSource(fast)
    later = make_row(source, SHORT, seed=1, policy="preview").request
    later.is_heard_in(4.0)
    assert later.due == clock.now + 4
    later.deliver(torch.zeros(1, later.sampling_rate))
    assert later.due == clock.now + 5, "what is there is heard then, not now"


@torch.no_grad()
@pytest.mark.parametrize("dry", [False, True])
def test_prompts_have_a_share_of_each_turn(fast, dry, monkeypatch):
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS", 60)
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS_BESIDE", 6)
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 6))
    stream = make_row(source, LONG, seed=1, policy="preview" if dry else None, first_chunk_frames=100)
    scheduler.add(stream)
    scheduler.turn()
    rows = [make_row(source, SHORT, seed=seed) for seed in range(5)]
    for row in rows:
        scheduler.add(row)
    turns = 0
    while any(row.step is None or not row.step.feed.is_step for row in rows):
        scheduler.turn()
        turns += 1
    assert turns > 5 if dry else turns <= 5
    while scheduler.busy:
        scheduler.turn()
    for seed, row in enumerate(rows):
        assert_as_alone(fast, Asked(SHORT, seed=seed), row.request)


@torch.no_grad()
@pytest.mark.parametrize("left_s, share", [(10.0, 60), (0.5, 6)])
def test_newcomers_do_not_silence_who_plays(fast, left_s, share, monkeypatch, clock):
    """Their prompts have a small share of each turn beside a stream that is nearly over, which gets a token in each."""
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS", 60)
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS_BESIDE", 60)
    monkeypatch.setattr(scheduling, "_NEWCOMERS_TOKENS", 6)
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 6))
    playing = make_row(source, LONG, seed=9, policy="preview", first_chunk_frames=10, max_chunk_frames=10)
    scheduler.add(playing)
    while not playing.request.plays:
        scheduler.turn()
    rows = [make_row(source, SHORT, seed=seed, policy="low_latency") for seed in range(5)]
    for row in rows:
        scheduler.add(row)
    fed, alone = [], Step.alone  # of all newcomers, after each turn

    def count(step):
        fed[-1] += 0 if step.slot is playing._slot else step.feed.tokens.shape[1]
        return alone(step)

    monkeypatch.setattr(Step, "alone", count)
    waiting = True
    while waiting:
        fed.append(fed[-1] if fed else 0)
        playing.request.waits_from, step = clock.now + left_s, playing.step
        scheduler.turn()
        assert playing.step is not step
        waiting = any(row.request.status == "semantic" and not row.step.feed.is_step for row in rows)
    prompt = 17  # tokens of this model's
    assert all(tokens <= (turn + 1) * share + prompt for turn, tokens in enumerate(fed)), "and a prompt begun"
    assert fed[-1] >= 5 * prompt and len(fed) <= fed[-1] / share + 2, "and no less"
    while scheduler.busy:
        scheduler.turn()
    for seed, row in enumerate(rows):
        assert_as_alone(fast, Asked(SHORT, seed, "low_latency"), row.request)


@torch.no_grad()
def test_turns_without_prompts_pay_for_the_prompts_before(fast, monkeypatch, clock):
    """Whoever comes long after a prompt does not wait for it to be paid for."""
    monkeypatch.setattr(scheduling, "_NEWCOMERS_TOKENS", 10)
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 2))
    playing = make_row(source, LONG, seed=9, policy="preview", first_chunk_frames=5, max_chunk_frames=5)
    scheduler.add(playing)

    def turn():
        playing.request.waits_from = clock.now + 0.5
        scheduler.turn()

    while not (playing.request.plays and not playing.step.feed.is_step):
        scheduler.turn()
    for _ in range(16):  # the first of which feeds the prompt of a window
        turn()
    assert playing.step.feed.is_step
    newcomer = make_row(source, SHORT, seed=1, policy="low_latency")
    scheduler.add(newcomer)
    turn()
    assert newcomer.step.feed.is_step, "its prompt was fed at once"
    while scheduler.busy:
        scheduler.turn()
    assert_as_alone(fast, Asked(SHORT, 1, "low_latency"), newcomer.request)


@torch.no_grad()
def test_whole_waveforms_gather_between_the_stages(monkeypatch):
    """Nobody listens yet, so steps wait until more rows share them; a stream is not kept waiting for others."""
    source = ModelSource(accelerated_copy(build(SMALL), speculate=False))
    lengths = [{"semantic_min_new_tokens": n, "semantic_max_new_tokens": n} for n in (40, 48, 56, 64, 72, 80, 60, 44)]
    inputs = [{**texts(SMALL, [3]), **length} for length in lengths]
    take_together = scheduling.take_together

    def waits_and_widths(streams: int) -> tuple[list[int], list[int]]:
        """Turns that each row spends between the stages, and the rows of each shared step."""
        scheduler, waits, widths = Scheduler(source.models, Slots(source.models, 4)), [0] * len(inputs), []
        monkeypatch.setattr(scheduling, "take_together", lambda s: widths.append(len(s)) or take_together(s))
        policies = ["preview"] * streams + [None] * (len(inputs) - streams)
        asked = [Asked(arguments, seed, policies[seed]) for seed, arguments in enumerate(inputs)]
        rows = [make_row(source, one.inputs, seed=one.seed, policy=one.policy) for one in asked]
        for row in rows:
            scheduler.add(row)
        while scheduler.busy:
            scheduler.turn()
            waits = [turns + row.is_between for turns, row in zip(waits, rows, strict=True)]
        for one, row in zip(asked, rows, strict=True):
            assert_as_alone(source._model, one, row.request)
        return waits, widths

    waits, widths = waits_and_widths(streams=0)
    waits_beside, widths_beside = waits_and_widths(streams=len(inputs))
    assert max(waits) > 20 and max(waits_beside) <= 1
    assert sum(widths) == sum(widths_beside) and len(widths) < 0.9 * len(widths_beside)


@torch.no_grad()
def test_no_more_gather_than_there_are_slots(monkeypatch):
    source = ModelSource(accelerated_copy(build(SMALL), speculate=False))
    scheduler, most, ends = Scheduler(source.models, Slots(source.models, 3)), 0, []
    rows = [make_row(source, SHORT, seed=seed) for seed in range(20)]
    for row in rows:
        scheduler.add(row)
        row.request.add_done_callback(lambda seed=row.request.seed: ends.append(seed))
    while scheduler.busy:
        scheduler.turn()
        most = max(most, sum(row.is_between for row in rows))
    assert most == 3
    assert all(abs(place - seed) <= 6 for place, seed in enumerate(ends)), "nobody is left behind"


@torch.no_grad()
@pytest.mark.parametrize("left_s", [10.0, 0.5])
def test_fine_passes_of_newcomers_do_not_silence_who_plays(fast, left_s, monkeypatch, clock):
    """Beside a stream that is nearly over, as much time passes without one as each has taken."""
    source, forward = ModelSource(fast), fine.bidirectional_forward
    scheduler = Scheduler(source.models, Slots(source.models, 4))
    playing = make_row(source, LONG, seed=9, policy="preview", first_chunk_frames=10, max_chunk_frames=10)
    scheduler.add(playing)
    while not playing.request.plays:
        scheduler.turn()
    passes, began = 0, []

    def takes_a_second(*args):
        began.append(clock.now)
        clock.now += 1.0
        return forward(*args)

    monkeypatch.setattr(fine, "bidirectional_forward", takes_a_second)
    rows = [make_row(source, SHORT, seed=seed, policy="low_latency") for seed in range(3)]
    for row in rows:
        scheduler.add(row)
    while not playing.request.done() and not all(row.request.done() for row in rows):
        clock.now += 0.1
        playing.request.waits_from = clock.now + left_s
        for row in rows:
            row.request.waits_from = clock.now
        passes, step = len(began), playing.step
        scheduler.turn()
        assert len(began) <= passes + 1
        assert playing.step is not step or step is None
    gaps = [b - a for a, b in pairwise(began)]
    assert len(gaps) > 5
    assert min(gaps) >= 2.0 if left_s < 2 else max(gaps) < 1.2
    while scheduler.busy:
        scheduler.turn()
    for seed, row in enumerate(rows):
        assert_as_alone(fast, Asked(SHORT, seed, "low_latency"), row.request)


@torch.no_grad()
def test_who_hears_something_comes_before_who_has_just_come(fast, clock):
    """Whoever waited for a row does not come first at once, but later nobody comes before him."""
    source = ModelSource(fast)
    playing, newcomer, whole = (
        make_row(source, SHORT, seed=seed, policy=policy).request
        for seed, policy in enumerate(["preview", "preview", None])
    )
    for request in (newcomer, whole):
        request.waits_from -= 60
        request.begin()
    playing.deliver(torch.zeros(1, playing.sampling_rate))
    assert playing.plays and not newcomer.plays and playing.due < newcomer.due < whole.due
    playing.deliver(torch.zeros(1, 2 * playing.sampling_rate))
    assert newcomer.due < clock.now + 2.5 < playing.due
    playing.finish(None)
    assert not playing.plays
