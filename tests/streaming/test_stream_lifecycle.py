"""The queue between a generation and its listener: every way to end, early, late or badly."""

from __future__ import annotations

import atexit
import copy
import gc
import inspect
import subprocess
import sys
import threading
import time
import traceback
import weakref

import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.generations import INPUTS, OPTIONS, STEPS, Generation, boom, on_call
from support.parity import accelerated_copy
from support.waiting import LIMIT_S, until

from bark_accel import AudioStreamer, stream
from bark_accel.streaming import listening

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind", "uncaught")
at_every_stage = pytest.mark.parametrize("stage", STEPS)


@at_every_stage
def test_a_generation_that_fails(fast, monkeypatch, uncaught, stage):
    """Chunks that are ready come first, then the error, again and again; `generate` raises it as well."""
    streamer = AudioStreamer(fast, first_chunk_frames=8, max_chunk_frames=8)
    on_call(monkeypatch, stage, boom)
    generation = Generation(fast, streamer)
    chunks = []
    with pytest.raises(RuntimeError, match="boom") as caught:
        chunks.extend(streamer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="boom"):
            next(streamer)
    assert "in boom" in "".join(traceback.format_exception(caught.value))
    assert generation.ends() and uncaught == [caught.value]
    if stage == "codec":
        chunk = []
        other = AudioStreamer(fast, first_chunk_frames=8, max_chunk_frames=8)
        monkeypatch.undo()
        Generation(fast, other).join()
        chunk.extend(other)
        assert len(chunk) > 1


@at_every_stage
def test_stream_raises_what_the_generation_raises(fast, monkeypatch, uncaught, stage):
    on_call(monkeypatch, stage, boom)
    with pytest.raises(RuntimeError, match="boom"):
        list(stream(fast, **INPUTS, **OPTIONS))
    assert uncaught == []


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_an_error_that_would_pass_for_the_end(fast, monkeypatch, error):
    def lost():
        raise error("lost")

    on_call(monkeypatch, "coarse", lost)
    with pytest.raises(RuntimeError, match=r"the generation raised .*lost") as caught:
        list(stream(fast, **INPUTS, **OPTIONS))
    assert isinstance(caught.value.__cause__, error)


@at_every_stage
def test_cancel_stops_before_the_next_step(fast, monkeypatch, uncaught, stage):
    streamer = AudioStreamer(fast, first_chunk_frames=8, max_chunk_frames=8)
    after = on_call(monkeypatch, stage, streamer.cancel)
    generation = Generation(fast, streamer)
    assert list(streamer) == [] or stage == "codec"
    assert generation.ends() and uncaught == [] and after == []
    assert torch.is_tensor(generation.audio) and list(streamer) == []
    streamer.cancel()


@at_every_stage
def test_cancel_in_transformers_own_loop(monkeypatch, stage):
    fast = accelerated_copy(build(SMALL), strict=False)
    streamer = AudioStreamer(fast, first_chunk_frames=8, max_chunk_frames=8)
    steps = []
    forward = type(fast.semantic).forward

    def counted(self, *args, **kwargs):
        steps.append(type(self).__name__)
        if len(steps) == 10:
            streamer.cancel()
        return forward(self, *args, **kwargs)

    counted.__signature__ = inspect.signature(forward)  # Transformers looks at it
    if stage in ("semantic", "coarse"):
        submodel = fast.semantic if stage == "semantic" else fast.coarse_acoustics
        # The class, because an instance with a method of its own counts as replaced.
        monkeypatch.setattr(type(submodel), "forward", counted)
    else:
        on_call(monkeypatch, stage, streamer.cancel)
    audio = fast.generate(**INPUTS, **OPTIONS, no_repeat_ngram_size=3, streamer=streamer)
    assert len(steps) in (0, 10)
    assert audio.shape[0] == 1 and list(streamer) == []


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
@pytest.mark.parametrize("voices", [None, [preset(SMALL, 12, 20)]], ids=["no voice", "a list"])
def test_cancel_where_there_is_one_chunk(monkeypatch, voices, stage):
    """A fine layer that Transformers has to run."""
    fast = accelerated_copy(build(SMALL), strict=False)
    fast.fine_acoustics.layers[0].mlp.gelu = torch.nn.ReLU()
    streamer = AudioStreamer(fast)
    after = on_call(monkeypatch, stage, streamer.cancel)
    audio = fast.generate(**INPUTS, **OPTIONS, history_prompt=voices, streamer=streamer)
    assert audio.shape == (1, 0) and after == []


def test_cancel_before_the_start(fast):
    streamer = AudioStreamer(fast)
    streamer.cancel()
    assert fast.generate(**INPUTS, **OPTIONS, streamer=streamer).shape == (1, 0)
    assert list(streamer) == []


def test_cancel_while_the_queue_is_full(fast):
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=2, max_queued_chunks=1)
    generation = Generation(fast, streamer)
    until(lambda: streamer._queue)
    assert generation.is_alive()
    streamer.cancel()
    assert generation.ends() and list(streamer) == []


def test_a_slow_listener_holds_the_generation_back(fast, monkeypatch):
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=4, max_queued_chunks=2)
    is_full, has_room = threading.Event(), streamer._has_room
    monkeypatch.setattr(streamer, "_has_room", lambda: has_room() or is_full.set())
    generation = Generation(fast, streamer)
    assert is_full.wait(LIMIT_S) and len(streamer._queue) == 2 and generation.is_alive()
    chunks = [*streamer]
    assert generation.ends() and len(chunks) > 3
    assert torch.equal(torch.cat(chunks, dim=1), generation.audio)


def test_a_listener_that_leaves_the_loop_of_stream(fast):
    for _ in stream(fast, **INPUTS, **OPTIONS, streamer=AudioStreamer(fast, policy="preview", first_chunk_frames=2)):
        break
    # The iterator was freed with the loop.
    assert not [t for t in threading.enumerate() if t.name == "bark_accel.stream"]
    audio = stream(fast, **INPUTS, **OPTIONS)
    audio.close()
    with pytest.raises(StopIteration):
        next(audio)


def test_a_listener_that_leaves_a_block(fast):
    with AudioStreamer(fast, policy="preview", first_chunk_frames=2, max_queued_chunks=1) as streamer:
        generation = Generation(fast, streamer)
        next(streamer)
    assert generation.ends() and generation.audio.shape[1] > 0


def test_a_listener_that_raises(fast):
    with pytest.raises(ZeroDivisionError):
        for _ in stream(fast, **INPUTS, **OPTIONS):
            1 / 0  # noqa: B018


def test_a_listener_that_changes_its_chunks(fast):
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=2)
    generation, chunks = Generation(fast, streamer), []
    for chunk in streamer:
        chunks.append(chunk.clone())
        chunk.zero_()
    assert generation.ends() and torch.equal(torch.cat(chunks, dim=1), generation.audio)


def test_an_iterator_that_is_freed_by_its_own_worker(fast, monkeypatch):
    """The garbage collector runs in whichever thread allocates."""
    unraisable, held, go = [], [], threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    after = on_call(monkeypatch, "coarse", lambda: go.wait() and held.clear())
    held.append(stream(fast, **INPUTS, **OPTIONS, streamer=AudioStreamer(fast, policy="preview", first_chunk_frames=2)))
    next(held[0])
    worker = next(t for t in threading.enumerate() if t.name == "bark_accel.stream")
    go.set()
    worker.join(LIMIT_S)
    assert not worker.is_alive() and held == [] and after == [] and unraisable == []


def test_a_program_that_ends_with_an_iterator_open():
    program = """
import torch
from bark_accel import stream
from bark_accel.streaming.streamer import AudioSource

class Endless(AudioSource):
    sampling_rate = 24_000

    def generate(self, streamer):
        with streamer.producing():
            while True:
                streamer.deliver(torch.zeros(1, 1))

audio = stream(Endless())
next(audio)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LIMIT_S)


def test_streams_leave_no_entries_in_the_table_of_what_runs_at_exit(fast):
    """`atexit.unregister` only blanks one; CPython counts those as well."""
    before = atexit._ncallbacks()
    for _ in range(3):
        list(stream(fast, **INPUTS, **OPTIONS))
    next(stream(fast, **INPUTS, **OPTIONS))
    gc.collect()
    assert atexit._ncallbacks() == before and not listening._live


def test_nothing_comes_in_time(fast, monkeypatch):
    """The listener may go on waiting; the generation does not notice."""
    begun, go = threading.Event(), threading.Event()
    on_call(monkeypatch, "semantic", lambda: begun.set() or go.wait(LIMIT_S))
    streamer = AudioStreamer(fast, timeout=0.1)
    generation = Generation(fast, streamer)
    assert begun.wait(LIMIT_S)
    with pytest.raises(TimeoutError, match=r"no audio for 0.1 s; the generation is still running"):
        next(streamer)
    go.set()
    streamer.timeout = None
    audio = torch.cat(list(streamer), dim=1)
    assert generation.ends() and torch.equal(audio, generation.audio)


def test_nobody_generates(fast):
    with pytest.raises(TimeoutError, match="no generation has started"):
        next(AudioStreamer(fast, timeout=0.05))


def test_nobody_listens(fast, uncaught):
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=2, timeout=0.1, max_queued_chunks=3)
    generation = Generation(fast, streamer)
    assert generation.ends() and "took none of 3 chunks for 0.1 s" in str(uncaught[0])
    with pytest.raises(TimeoutError):
        list(streamer)


def test_a_timeout_ends_stream(fast, monkeypatch):
    on_call(monkeypatch, "semantic", lambda: time.sleep(0.3))
    with pytest.raises(TimeoutError, match="no audio"):
        list(stream(fast, **INPUTS, **OPTIONS, streamer=AudioStreamer(fast, timeout=0.05)))


def test_two_streams_on_one_model_at_once(fast):
    """Greedy, because the two share one random generator."""
    jobs = [texts(SMALL, [5], seed) for seed in range(2)]
    options = {**OPTIONS, "semantic_max_new_tokens": 40}
    expected = [fast.generate(**job, **options) for job in jobs]
    streamers = [AudioStreamer(fast, first_chunk_frames=400) for _ in jobs]
    generations = [Generation(fast, s, **job, **options) for s, job in zip(streamers, jobs, strict=True)]
    for streamer, generation, whole in zip(streamers, generations, expected, strict=True):
        torch.testing.assert_close(torch.cat(list(streamer), dim=1), whole, rtol=0, atol=1e-6)
        generation.join()


def test_a_streamer_serves_one_generation(fast, uncaught):
    streamer = AudioStreamer(fast)
    audio = fast.generate(**INPUTS, **OPTIONS, streamer=streamer)
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a new AudioStreamer for every generation"):
            fast.generate(**INPUTS, **OPTIONS, streamer=streamer)
    with pytest.raises(ValueError, match="expected a new AudioStreamer"):
        stream(fast, **INPUTS, streamer=streamer)
    # The first generation's listener is not disturbed.
    assert torch.equal(torch.cat(list(streamer), dim=1), audio)
    assert list(streamer) == [] and next(streamer, "end") == "end"


def test_two_streams_with_one_streamer(fast):
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=2)
    audio = stream(fast, **INPUTS, **OPTIONS, streamer=streamer)
    with pytest.raises(ValueError, match="expected a new AudioStreamer"):
        stream(fast, **INPUTS, **OPTIONS, streamer=streamer)
    assert torch.cat(list(audio), dim=1).shape[1] == streamer.row_lengths_samples[0]


def test_a_copy_is_the_same_queue(fast):
    streamer = AudioStreamer(fast)
    assert copy.deepcopy({"streamer": streamer})["streamer"] is streamer is copy.copy(streamer)


def test_the_model_is_freed():
    model = accelerated_copy(build(SMALL))
    streamer = AudioStreamer(model)
    assert list(stream(model, **INPUTS, **OPTIONS, streamer=streamer))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
