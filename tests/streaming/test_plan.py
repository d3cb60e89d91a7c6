"""Chunks planned from a machine's speed: no silence where it allows that, the same sound for the same plan."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy

from bark_accel import AudioStreamer, BarkEngine, StreamPlan, StreamSpeed, acceleration_report, stream, stream_speed
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.patches import stream_plan as planning
from bark_accel.stages.coarse import CoarseStage, prompts
from bark_accel.stages.spec import CoarseSpec, FineSpec
from bark_accel.streaming import plan as planning_module
from bark_accel.streaming.plan import Utterance, plan_stream

ONE = texts(SMALL, [6])
LONG = {"semantic_max_new_tokens": 90, "do_sample": True, "fine_temperature": 0.6}
COARSE = CoarseSpec(10_000, 12_048, 49.9, 12_050, 1024, 2, 75, 256, 630, 60)
FINE = FineSpec(10_000, 1024, 2, 8, 512, 1024, fit_windows=True)
# Somewhat faster than two Zen 5 cores with int8.
SPEED = StreamSpeed(token_s=1.4e-3, prompt_token_s=1.5e-4, fine_frame_s=1.1e-3, codec_frame_s=1.5e-4)
SETTINGS = {"start": "soonest", "first": 30, "longest": 480, "lookahead": 15}


def heard(plan, speed, utterance, total):
    """Replay a plan without the planner.

    Seconds until the first sound after the semantic tokens; of silence after it; of silence before a frame, on average.
    """
    drawn, clock = [0.0], 0.0
    for window, fed in prompts(utterance.coarse, utterance.semantic_history, utterance.coarse_history):
        clock += fed * speed.prompt_token_s
        for _ in range(window):
            clock += speed.token_s
            drawn.append(clock)
        if len(drawn) > 2 * total:
            break
    lengths = itertools.chain(plan.chunk_frames, itertools.repeat(plan.chunk_frames[-1]))
    done, free, first, silence, other, silent_frames = 0, 0.0, None, 0.0, 0.0, 0.0
    while done < total:
        frames = next(lengths)
        if total - done <= frames + plan.lookahead_frames:
            frames = total - done
        seen = min(total, done + frames + plan.lookahead_frames)
        history = min(plan.history_frames, utterance.fine_history + done)
        other += utterance.fine.window_frames(history + seen - done) * speed.fine_frame_s + speed.fine_window_s
        other += frames * speed.codec_frame_s
        ready = drawn[2 * seen] + other
        first = ready if first is None else first
        silence += max(0.0, ready - free) if done else 0.0
        free = max(ready, free) + frames / utterance.coarse.rate_hz
        silent_frames += frames * silence
        done += frames
    return first, silence, silent_frames / total


@given(
    total=st.integers(1, 1155),
    slower=st.floats(0.3, 6.0),
    window_s=st.sampled_from([0.0, 0.1]),
    start=st.sampled_from(["soonest", "smooth"]),
    voice=st.sampled_from([(0, 0, 0), (100, 300, 150), (400, 1200, 600)]),
)
def test_a_plan_keeps_what_it_says(total, slower, window_s, start, voice):
    speed = StreamSpeed(**{name: slower * value for name, value in asdict(SPEED).items()})
    speed = replace(speed, fine_window_s=slower * window_s)
    longest = Utterance(COARSE, FINE, 1155, *voice)
    plan = plan_stream(speed, longest, **{**SETTINGS, "start": start})
    first, silence, _ = heard(plan, speed, longest, total)
    if start == "smooth":
        assert plan.silence_s == 0
    else:
        assert plan.chunk_frames[0] in (30, 41) or (voice[2] and plan.chunk_frames[0] < 30 + 64), "or fills that window"
        assert max(plan.chunk_frames) <= 480
    if plan.silence_s == 0:
        assert silence < 1e-3, "also for speech that is shorter than the longest"
        assert all(frames >= 30 for frames in plan.chunk_frames)
    assert first <= plan.ready_s[0] + 1e-3


@pytest.mark.parametrize("slower", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("voice", [(0, 0, 0), (209, 628, 512)])
def test_no_other_chunks_have_less_silence(voice, slower):
    """In the mean over all lengths that the speech may have; all sequences of lengths that fill windows are tried."""
    speed = StreamSpeed(**{name: slower * value for name, value in asdict(SPEED).items()})
    utterance = Utterance(COARSE, FINE, 220, *voice)
    plan = plan_stream(speed, utterance, **SETTINGS)
    reserved = StreamSpeed(**{name: 1.15 * value for name, value in asdict(speed).items()})

    def sequences(chunks):
        done = sum(chunks)
        if done >= 220:
            yield chunks
            return
        seen = min(128, voice[2] + done) + 15 + 8
        for frames in {30, *(end - seen for end in range(0, 1025, 64) if 30 <= end - seen <= 480)}:
            yield from sequences([*chunks, frames])

    every = [
        heard(StreamPlan(chunks, 15, 128), reserved, utterance, 220) for chunks in sequences([plan.chunk_frames[0]])
    ]
    assert len(every) > 50
    silences, means = ([its[i] for its in every] for i in (1, 2))
    # The planner gives the last chunk all of its frames and does not join a rest to the one before.
    assert heard(plan, reserved, utterance, 220)[2] <= min(means) + 0.05
    assert plan.silence_s >= min(silences) - 2e-3


def test_speech_that_ends_sooner_than_it_may_has_less_silence():
    """Most does: of 15 s that are allowed, two or five are not kept waiting for what the last seconds need."""
    slow = StreamSpeed(**{name: 1.7 * value for name, value in asdict(SPEED).items()})
    longest = Utterance(COARSE, FINE, 1152)
    plan = plan_stream(slow, longest, **SETTINGS)
    silences = [heard(plan, slow, longest, frames)[1] for frames in (150, 375, 1152)]
    assert silences[0] <= silences[1] < silences[2] / 3


def test_a_fast_machine_has_no_silence_and_longer_chunks_with_time():
    plan = plan_stream(SPEED, Utterance(COARSE, FINE, 750), **SETTINGS)
    assert plan.silence_s == 0 and plan.chunk_frames[0] == 30 < plan.chunk_frames[3]
    assert sum(plan.chunk_frames) >= 750
    assert plan.history_frames == 128 and plan.lookahead_frames == 15


@pytest.mark.parametrize("window, multiple", [(1024, 64), (1000, 63)])
def test_chunks_leave_no_room_in_their_windows(window, multiple):
    """But for eight frames of padding, or where the shortest chunk is all there is time for."""
    fine = replace(FINE, max_input_frames=window)
    plan, done = plan_stream(SPEED, Utterance(COARSE, fine, 750), **SETTINGS), 0
    for frames in plan.chunk_frames:
        assert frames == 30 or (min(128, done) + frames + 15 + 8) % multiple == 0
        done += frames
    assert plan.chunk_frames.count(30) < len(plan.chunk_frames) / 2


def test_the_first_sound_does_not_depend_on_the_length():
    firsts = {plan_stream(SPEED, Utterance(COARSE, FINE, n), **SETTINGS).ready_s[0] for n in (150, 375, 750, 1050)}
    assert len(firsts) == 1


def test_a_slow_machine_waits_once_or_before():
    slow = StreamSpeed(**{name: 8 * value for name, value in asdict(SPEED).items()})
    soonest, smooth = (
        plan_stream(slow, Utterance(COARSE, FINE, 750), **{**SETTINGS, "start": start})
        for start in ("soonest", "smooth")
    )
    assert soonest.chunk_frames[0] in (30, 41) and soonest.silence_s > 1
    assert smooth.silence_s == 0 and smooth.chunk_frames[0] > 300 and smooth.ready_s[0] > soonest.ready_s[0]


def test_no_longer_first_chunk_is_tried_than_has_no_silence(monkeypatch):
    """The listener waits for the search as well; of a whole utterance's lengths, most are longer than it takes."""
    tried, search = [], planning_module._Work.last_chunk

    def spy(self, first, *arguments, **named):
        tried.append(first)
        return search(self, first, *arguments, **named)

    monkeypatch.setattr(planning_module._Work, "last_chunk", spy)
    speed = StreamSpeed(**{name: 0.6 * value for name, value in asdict(SPEED).items()})
    plan = plan_stream(speed, Utterance(COARSE, FINE, 1151), **{**SETTINGS, "start": "smooth"})
    assert plan.silence_s == 0 and tried == [plan.chunk_frames[0]]


@pytest.mark.parametrize("first, expected", [(15, 15), (16, 41), (30, 41)])
def test_a_first_chunk_that_one_coarse_window_holds_is_not_made_longer(first, expected):
    """30 frames a window, lookahead counted, and after a full preset each has a prompt of its own."""
    slow = StreamSpeed(**{name: 1.5 * value for name, value in asdict(SPEED).items()})
    full, settings = Utterance(COARSE, FINE, 1050, 209, 628, 512), {**SETTINGS, "first": first}
    plan = plan_stream(slow, full, **settings)
    assert plan.chunk_frames[0] == expected and plan.silence_s > 0
    one_window_s = 60 * slow.token_s + 887 * slow.prompt_token_s + 128 * slow.fine_frame_s
    assert (plan.ready_s[0] < 1.5 * one_window_s) == (expected == 15)


@pytest.mark.parametrize("voice, frames, needed", [((0, 0), 750, 256), ((209, 626), 750, 47), ((0, 0), 150, 100)])
def test_interleaved_semantic_tokens_are_counted(voice, frames, needed):
    """As many as the first window has to see, or there are; later windows wait for theirs."""
    alone, beside = (Utterance(COARSE, FINE, frames, *voice, interleaved=i) for i in (False, True))
    drawn = [planning_module._drawn_s(SPEED, utterance) for utterance in (alone, beside)]
    waited = [b - a for a, b in zip(*drawn, strict=True)]
    assert waited[1] == pytest.approx(needed * SPEED.token_s)
    assert waited[frames] == pytest.approx(math.ceil(2 * frames / COARSE.tokens_per_semantic) * SPEED.token_s)
    assert waited[0] == 0 and all(b - a > -1e-9 for a, b in itertools.pairwise(waited))
    ready = [plan_stream(SPEED, utterance, **SETTINGS).ready_s[0] for utterance in (alone, beside)]
    assert ready[1] > ready[0]


def test_a_plan_cannot_be_changed():
    """So that it is the one that a stream was made by."""
    plan = StreamPlan([30, 60], 15, 128)
    assert plan.chunk_frames == (30, 60) and hash(plan) == hash(StreamPlan((30, 60), 15, 128))
    for name, value in asdict(plan).items():
        with pytest.raises(FrozenInstanceError):
            setattr(plan, name, value)
    with pytest.raises(FrozenInstanceError):
        SPEED.token_s = 1.0


def test_plans_and_speeds_are_written_and_read():
    plan = plan_stream(SPEED, Utterance(COARSE, FINE, 750), **SETTINGS)
    assert StreamPlan(**json.loads(json.dumps(asdict(plan)))) == plan
    assert StreamSpeed(**json.loads(json.dumps(asdict(SPEED)))) == SPEED
    with pytest.raises(ValueError, match="chunk_frames: expected at least one chunk, got none"):
        StreamPlan((), 15, 128)
    with pytest.raises(ValueError, match="chunk_frames: expected a whole number >= 1, got 0"):
        StreamPlan((30, 0), 15, 128)
    with pytest.raises(ValueError, match="history_frames: expected a whole number >= 0, got -1"):
        StreamPlan((30,), 15, -1)
    for value in (math.nan, math.inf, -1.0, 1e300):
        with pytest.raises(
            ValueError, match="token_s: expected seconds >= 0, at most 1e\\+09, got " + re.escape(repr(value))
        ):
            StreamSpeed(value, 0, 0, 0)


@pytest.mark.parametrize("start", ["soonest", "smooth"])
@pytest.mark.parametrize("seconds", [0.0, 1e-12, 1e9])
def test_any_speed_has_a_plan(seconds, start):
    plan = plan_stream(StreamSpeed(*5 * [seconds]), Utterance(COARSE, FINE, 1155), **{**SETTINGS, "start": start})
    assert sum(plan.chunk_frames) >= 1155 and min(plan.chunk_frames) >= 30
    assert (plan.silence_s == 0) == (seconds < 1 or start == "smooth")


@pytest.mark.parametrize("voice", [None, (9, 15), (20, 30), (60, 91)])
def test_prompts_are_those_of_the_stage(small_model, monkeypatch, voice):
    """Tokens of each window, and how many the model is fed as it opens."""
    fed, feed = [], CoarseStage.feed

    def spy(self, state):
        opens, given = len(state.window) == state.window_tokens, feed(self, state)
        if opens:
            fed.append((state.window_tokens, given.tokens.shape[1], state.semantic_history, state.coarse_history))
        return given

    monkeypatch.setattr(CoarseStage, "feed", spy)
    history = None if voice is None else preset(SMALL, *voice)
    fast = accelerated_copy(small_model, speculate=False)
    fast.generate(**ONE, history_prompt=history, semantic_max_new_tokens=80)
    spec = GenerationConfigs.of(small_model).coarse_spec
    expected = list(itertools.islice(prompts(spec, *fed[0][2:]), len(fed)))
    assert len(fed) > 3 and [pair[:2] for pair in fed[:-1]] == expected[:-1]
    assert fed[-1][1] == expected[-1][1], "the last window may be shorter"


@pytest.fixture(scope="module")
def fitting(small_model):
    return accelerated_copy(small_model, fit_windows=True)


def sound(model, seed=3, settings=None, **kwargs):
    """(chunks, streamer, random state) of a stream."""
    torch.manual_seed(seed)
    streamer = AudioStreamer(model, first_chunk_frames=8, lookahead_frames=4, **(settings or {}))
    chunks = list(stream(model, streamer=streamer, **{**ONE, **LONG, **kwargs}))
    return chunks, streamer, torch.get_rng_state()


def samples_per_frame(model):
    return math.prod(model.codec_model.config.upsampling_ratios)


class TestStreams:
    def test_the_plan_is_read_and_given_again(self, small_model, fitting):
        chunks, streamer, _ = sound(fitting)
        plan = streamer.plan
        samples = samples_per_frame(fitting)
        assert plan.history_frames == SMALL.fine_history // 4 and plan.lookahead_frames == 4
        assert [c.shape[1] // samples for c in chunks[:-1]] == list(plan.chunk_frames[: len(chunks) - 1])
        again, _, _ = sound(fitting)
        assert torch.equal(torch.cat(again, 1), torch.cat(chunks, 1)), "measured once"
        other = accelerated_copy(small_model, fit_windows=True)
        given = StreamPlan(**json.loads(json.dumps(asdict(plan))))
        same, streamer, _ = sound(other, settings={"plan": given})
        assert torch.equal(torch.cat(same, 1), torch.cat(chunks, 1)) and streamer.plan == plan

    def test_a_given_speed_decides_the_chunks(self, fitting):
        fast, slow = StreamSpeed(1e-6, 1e-7, 1e-6, 1e-6), StreamSpeed(1.0, 0.1, 1.0, 0.1)
        plans = [sound(fitting, settings={"speed": speed})[1].plan for speed in (fast, slow)]
        smooth, streamer, _ = sound(fitting, settings={"speed": slow, "start": "smooth"})
        assert plans[0].silence_s == streamer.plan.silence_s == 0 < plans[1].silence_s
        assert plans[0].chunk_frames != plans[1].chunk_frames
        assert len(smooth) == 1, "so slow a machine gives all of it at once"

    def test_the_trial_leaves_no_trace(self, small_model, monkeypatch):
        """Tokens, random state and the count of drafts are those of a stream with a given speed."""
        fast = accelerated_copy(small_model, fit_windows=True, speculate=True)
        trials, measure = [], planning.measure_speed

        def spy(*arguments):
            trials.append(measure(*arguments))
            return trials[-1]

        monkeypatch.setattr(planning, "measure_speed", spy)
        chunks, _, state = sound(fast)
        sound(fast)
        assert len(trials) == 1 and stream_speed(fast) == trials[0]
        assert all(value > 0 for name, value in asdict(trials[0]).items() if name != "fine_window_s")
        other = accelerated_copy(small_model, fit_windows=True, speculate=True)
        expected, _, expected_state = sound(other, settings={"speed": trials[0]})
        sound(other, settings={"speed": trials[0]})
        assert torch.equal(torch.cat(chunks, 1), torch.cat(expected, 1)) and torch.equal(state, expected_state)
        counts = [[stage.drafts for stage in acceleration_report(model).stages] for model in (fast, other)]
        assert counts[0] == counts[1] and len(trials) == 1

    def test_only_fitting_windows_are_planned(self, small_model, fitting):
        assert sound(accelerated_copy(small_model))[1].plan is None
        for policy in ("exact", "preview"):
            assert sound(fitting, settings={"policy": policy})[1].plan is None

    def test_a_plan_holds_for_any_model(self, small_model):
        plan = StreamPlan((10, 20), 4, 12)
        chunks, _, _ = sound(accelerated_copy(small_model), settings={"plan": plan})
        samples = samples_per_frame(small_model)
        assert [c.shape[1] // samples for c in chunks[:-1]] == [10] + [20] * (len(chunks) - 2)

    @pytest.mark.parametrize("greedy", [False, True])
    def test_an_engine_plans_as_a_stream_does(self, fitting, greedy):
        """Whether or not the stream is interleaved."""
        inputs = {**ONE, **LONG, "do_sample": not greedy}
        torch.manual_seed(5)
        alone = torch.cat(list(stream(fitting, **inputs)), 1)[0]
        with BarkEngine(fitting) as engine:
            request = engine.submit(seed=5, policy="low_latency", **inputs)
            assert torch.equal(request.result(), alone)

    def test_speeds_of_what_cannot_be_measured(self, small_model, fitting):
        with pytest.raises(ValueError, match="stream_speed: expected an accelerated model"):
            stream_speed(small_model)
        with pytest.raises(ValueError, match="rows: expected a whole number >= 1, got 0"):
            stream_speed(fitting, rows=0)
        assert stream_speed(fitting, rows=2) != stream_speed(fitting)

    @pytest.mark.parametrize("disturbed", [0, 1])
    def test_one_disturbed_trial_does_not_count(self, small_model, monkeypatch, disturbed):
        """Every part is timed twice: of the causal stages window by window, of the others call by call."""
        timed, calls = planning._timed, []

        def clock(work):
            result = timed(work)[1]
            # A coarse window's prompt, then its other tokens; then the fine windows and the codec, twice in turn.
            turn = len(calls) // 2 % 2 if len(calls) < 4 else len(calls) % 2
            calls.append(turn)
            return (100.0 if turn == disturbed else 1.0), result

        monkeypatch.setattr(planning, "_timed", clock)
        speed = stream_speed(accelerated_copy(small_model, fit_windows=True))
        assert len(calls) == 10 and max(asdict(speed).values()) <= 1.0

    @pytest.mark.parametrize("window_s, expected", [(0.05, (0.01, 0.05)), (0.5, ((0.5 + 0.18) / 36, (0.5 + 0.18) / 2))])
    def test_fine_windows_cost_by_the_frame_and_each(self, small_model, monkeypatch, window_s, expected):
        """Of windows of 12 and 18 frames; at least half of the longer one's time is its frames'."""
        timed = planning._timed

        def clock(work):
            result = timed(work)[1]
            codes = isinstance(result, torch.Tensor) and result.ndim == 3
            return (window_s + 0.01 * 6 * math.ceil((result.shape[2] + 8) / 6) if codes else 1.0), result

        monkeypatch.setattr(planning, "_timed", clock)
        for fit in (False, True):
            speed = stream_speed(accelerated_copy(small_model, fit_windows=fit))
            assert (speed.fine_frame_s, speed.fine_window_s) == pytest.approx(expected)
