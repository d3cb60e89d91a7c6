"""The helpers of a thread that does not compute: they end, and come back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from support.bark_models import SMALL, build
from support.parity import accelerated_copy
from support.waiting import LIMIT_S, until

from bark_accel import AudioStreamer, BarkEngine, SpeechRequest, _forked, stream
from bark_accel.bench.models import fake_inputs
from bark_accel.longform.reader import SpokenChunk
from bark_accel.ops import _library
from bark_accel.ops.idle_threads import copied, end_idle_threads

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _library.load().has_threads(), reason="only libgomp counts threads"
)
LONG = torch.ones(1 << 22)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # xdist's workers have the command line of nobody; a test runner started by a fork might look forked.
    monkeypatch.setattr(_forked, "_looks_forked", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def helpers() -> set[str]:
    """Threads of this process that a parallel operation of this thread has started."""
    end_idle_threads()
    before = set(os.listdir("/proc/self/task"))
    assert LONG.sum() == len(LONG)
    return set(os.listdir("/proc/self/task")) - before


def still_there(threads: set[str]) -> set[str]:
    return threads & set(os.listdir("/proc/self/task"))


def end(threads: set[str]) -> bool:
    """Wait until they are gone: a thread that ends is seen for a moment."""
    until(lambda: not still_there(threads))
    return True


def test_they_end_and_come_back() -> None:
    first = helpers()
    assert len(first) == 2
    end_idle_threads()
    assert end(first)
    assert len(helpers()) == 2


def test_other_threads_keep_theirs() -> None:
    theirs: set[str] = set()
    started, ended = threading.Event(), threading.Event()

    def compute() -> None:
        torch.set_num_threads(3)
        theirs.update(helpers())
        started.set()
        ended.wait(LIMIT_S)

    thread = threading.Thread(target=compute)
    thread.start()
    assert started.wait(LIMIT_S)
    end_idle_threads()
    assert len(still_there(theirs)) == 2
    ended.set()
    thread.join()


def test_a_stream_ends_its_listeners_helpers() -> None:
    model = accelerated_copy(build(SMALL), strict=False)
    idle = helpers()
    chunks = stream(model, **fake_inputs(model, "Hello"), semantic_max_new_tokens=8)
    next(chunks)
    assert len(idle) == 2 and end(idle)
    chunks.close()


def test_a_request_ends_its_callers_helpers() -> None:
    model = accelerated_copy(build(SMALL), strict=False)
    with BarkEngine(model, max_rows=1) as engine:
        idle = helpers()
        engine.submit(**fake_inputs(model, "Hello"), semantic_max_new_tokens=8).result()
        assert len(idle) == 2 and end(idle)


def helpers_that_stay() -> set[str]:
    """Threads as in `helpers`, of a thread that has none."""
    before = set(os.listdir("/proc/self/task"))
    assert LONG.sum() == len(LONG)
    return set(os.listdir("/proc/self/task")) - before


@pytest.mark.parametrize("wait", [SpeechRequest.result, lambda request: asyncio.run(awaited(request)), list])
def test_who_waits_for_a_request_has_none(wait: Callable) -> None:
    """Nor does the copy of its audio make any, beside other requests."""
    model = accelerated_copy(build(SMALL), strict=False)
    length = {"semantic_min_new_tokens": 80, "semantic_max_new_tokens": 80}
    with BarkEngine(model, max_rows=1) as engine:
        engine.submit(**fake_inputs(model, "Hello"), semantic_max_new_tokens=8).result()  # its threads are there
        request, other = (engine.submit(**fake_inputs(model, "Hello"), **length) for _ in range(2))
        idle = helpers_that_stay()
        audio = wait(request)
        assert len(idle) == 2 and end(idle)
        other.result()
        threads = set(os.listdir("/proc/self/task"))
        assert len(other.result()) > 32768, "torch copies what is shorter without helpers"
        assert set(os.listdir("/proc/self/task")) <= threads
        assert audio is not None


async def awaited(request: SpeechRequest) -> torch.Tensor:
    return await request


def test_a_stream_ends_those_of_a_listener_between_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerated_copy(build(SMALL), strict=False)
    streamer = AudioStreamer(model, policy="low_latency", first_chunk_frames=2, max_chunk_frames=2)
    go, deliver = threading.Event(), streamer.deliver
    monkeypatch.setattr(streamer, "deliver", lambda chunk: deliver(chunk) or go.wait(LIMIT_S))
    chunks = stream(model, **fake_inputs(model, "Hello"), semantic_max_new_tokens=30, streamer=streamer)
    next(chunks)
    idle = helpers_that_stay()
    go.set()
    next(chunks)
    assert len(idle) == 2 and end(idle)
    chunks.close()


def test_closing_an_engine_ends_them() -> None:
    model = accelerated_copy(build(SMALL), strict=False)
    end_idle_threads()
    before = set(os.listdir("/proc/self/task"))
    engine = BarkEngine(model, max_rows=1)
    request = engine.submit(**fake_inputs(model, "Hello"), semantic_max_new_tokens=40)
    assert len(helpers_that_stay()) >= 2
    engine.close(drain=True)
    assert request.done()
    until(lambda: set(os.listdir("/proc/self/task")) <= before)


def test_an_engine_that_waits_for_requests_has_none() -> None:
    """Whatever computes beside it meanwhile is not slowed down."""
    model = accelerated_copy(build(SMALL), strict=False)
    with BarkEngine(model, max_rows=1) as engine:
        end_idle_threads()
        before = set(os.listdir("/proc/self/task"))
        for _ in range(2):
            engine.submit(**fake_inputs(model, "Hello"), semantic_max_new_tokens=8).result()
            until(lambda: set(os.listdir("/proc/self/task")) <= before)


def test_copies_of_waveforms_make_none() -> None:
    end_idle_threads()
    first = torch.randn(200_000)
    end_idle_threads()
    before = set(os.listdir("/proc/self/task"))
    one, spoken = copied(first), SpokenChunk(0, "", first, 50_000, True, None, False)
    waveform = spoken.audio_and_pause
    assert set(os.listdir("/proc/self/task")) <= before
    assert one.equal(first) and one.data_ptr() != first.data_ptr()
    assert waveform.equal(torch.cat([first, torch.zeros(50_000)]))


IMPORTS = """
from bark_accel.ops import _library
from bark_accel.ops.idle_threads import end_idle_threads
"""


@pytest.mark.parametrize("before, after", [(IMPORTS, ""), ("", IMPORTS)], ids=["forked later", "forked before"])
def test_a_forked_process_has_none_to_end(before: str, after: str) -> None:
    """It would wait for ever for threads that do not exist there."""
    program = f"""
import os, torch
torch.set_num_threads(3)
{before}
torch.ones(1 << 22).sum()
child = os.fork()
if child == 0:
    {after.strip().replace(chr(10), "; ")}
    _library.load()
    end_idle_threads()
    os._exit(7)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=LIMIT_S).returncode == 7


def test_a_daemon_has_none_to_end() -> None:
    """The process that forked it is gone, and nobody has accelerated a model before."""
    program = f"""
import os, torch
torch.set_num_threads(3)
{IMPORTS}
_library.load()
torch.ones(1 << 22).sum()
heard, said = os.pipe()
parent = os.fork()
if parent == 0:
    if os.fork() == 0:
        os.read(heard, 1)
        end_idle_threads()
        print("ended", flush=True)
    os._exit(0)
os.waitpid(parent, 0)
os.write(said, b" ")
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=LIMIT_S, capture_output=True, text=True)
    assert done.stdout == "ended\n"


def test_only_libgomp_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM's OpenMP, under libgomp's name, would pause the threads of all."""
    asked: list[int] = []
    gomp = SimpleNamespace(omp_pause_resource_all=asked.append)
    monkeypatch.setattr(_library.load(), "_functions", gomp)
    end_idle_threads()
    gomp.kmp_set_blocktime = None
    end_idle_threads()
    assert asked == [1]
