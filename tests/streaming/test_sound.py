"""Sound that is decoded beside the next tokens: the same chunks in the same order, none late and none lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.parity import accelerated_copy
from support.waiting import LIMIT_S
from torch import Tensor

from bark_accel import AudioStreamer, BarkEngine, stream
from bark_accel.ops import cuda_streams
from bark_accel.streaming import pipeline, sound
from bark_accel.streaming.sound import Arriving, SideStream, make_side_stream

OPTIONS: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 60}
CHUNKS: dict[str, Any] = {"first_chunk_frames": 5, "max_chunk_frames": 5}


class Late:
    """Done after some looks; `waits` are those that did not have the patience."""

    def __init__(self, looks: int, waits: list[int]):
        self._looks, self._waits = looks, waits

    def query(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def synchronize(self) -> None:
        if self._looks >= 0:
            self._waits.append(self._looks)


class LateSide:
    """Works at once, and has nobody know until they have looked a few times."""

    def __init__(self, looks: int):
        self.looks, self.waits, self.ran = looks, list[int](), 0
        self.given: list[tuple[Tensor | None, ...]] = []

    def run(self, work: Callable[[], Tensor], *given: Tensor | None) -> Arriving:
        self.ran += 1
        self.given.append(given)
        return Arriving(work(), Late(self.looks, self.waits))


NEVER = 10**6


@pytest.fixture(params=(0, 7, NEVER), ids=("at once", "later", "never by itself"))
def side(request: Any, monkeypatch: pytest.MonkeyPatch) -> LateSide:
    double = LateSide(request.param)
    monkeypatch.setattr(sound, "make_side_stream", lambda device: double)
    return double


def chunks_of(model: Any, lengths: list[int], policy: str) -> list[Tensor]:
    torch.manual_seed(3)
    streamer = AudioStreamer(model, policy=policy, lookahead_frames=2, **CHUNKS)
    return list(stream(model, streamer=streamer, **texts(SMALL, lengths), **OPTIONS))


@pytest.mark.parametrize("lengths", ([6], [6, 3]), ids=("one row", "two rows"))
@pytest.mark.parametrize("policy", ("preview", "low_latency", "exact"))
def test_the_chunks_are_the_same_in_their_order(
    small_model: Any, side: LateSide, policy: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = accelerated_copy(small_model)
    got = chunks_of(fast, lengths, policy)
    with monkeypatch.context() as patch:
        patch.setattr(sound, "make_side_stream", lambda device: None)
        expected = chunks_of(fast, lengths, policy)
    assert len(got) == len(expected) and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert side.ran >= len(got) and (policy == "exact" or len(got) > 3)
    assert all((len(lengths) > 1) == (rows is not None) for _, rows in side.given), "row lengths are read there too"


def test_only_the_first_and_the_last_chunk_are_waited_for(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a middle chunk's beginning and its end tokens come."""
    double, events = LateSide(3), list[str]()
    monkeypatch.setattr(sound, "make_side_stream", lambda device: double)
    run, push = double.run, pipeline.ChunkDecoder.push

    def begun(work: Any, *given: Any) -> Arriving:
        events.append("begin")
        return run(work, *given)

    def token(self: Any, tokens: Tensor) -> None:
        events.append("token")
        push(self, tokens)

    monkeypatch.setattr(double, "run", begun)
    monkeypatch.setattr(pipeline.ChunkDecoder, "push", token)
    fast = accelerated_copy(small_model)
    streamer = AudioStreamer(fast, policy="preview", **CHUNKS)
    deliver = streamer.deliver
    monkeypatch.setattr(streamer, "deliver", lambda chunk: events.append("heard") or deliver(chunk))
    fast.generate(**texts(SMALL, [6]), **OPTIONS, streamer=streamer)
    begins = [i for i, event in enumerate(events) if event == "begin"]
    after = [events[i + 1] for i in begins]
    assert after[1] == "heard", "the first sound is not put off; of 5 frames there is none yet"
    assert "token" in after[2:-1] and after[-1] == "heard"
    assert events.count("heard") + 1 >= events.count("begin") > 5
    assert len(double.waits) == 3, double.waits


def test_an_engines_requests_lose_nothing(small_model: Any, side: LateSide) -> None:
    fast = accelerated_copy(small_model, speculate=False)
    expected = fast.generate(**texts(SMALL, [6]), do_sample=False, semantic_max_new_tokens=40)
    with BarkEngine(fast) as engine:
        requests = [engine.submit(**texts(SMALL, [6]), do_sample=False, semantic_max_new_tokens=40) for _ in range(2)]
        for request in requests:
            torch.testing.assert_close(request.result(LIMIT_S), expected[0], rtol=0, atol=1e-6)
    assert side.ran >= 2


def test_an_engines_streams_lose_nothing(small_model: Any, side: LateSide) -> None:
    fast = accelerated_copy(small_model, speculate=False)
    given: dict[str, Any] = {**texts(SMALL, [6]), "do_sample": False, "semantic_max_new_tokens": 40}
    streamer = AudioStreamer(fast, policy="preview", interleave=False, **CHUNKS)
    expected = torch.cat(list(stream(fast, streamer=streamer, **given)), 1)[0]
    with BarkEngine(fast) as engine:
        requests = [engine.submit(**given, policy="preview", **CHUNKS) for _ in range(2)]
        for request in requests:
            chunks = list(request)
            assert len(chunks) > 3
            torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-6)


def test_a_listener_who_leaves_ends_it(small_model: Any, side: LateSide) -> None:
    fast = accelerated_copy(small_model)
    streamer = AudioStreamer(fast, policy="preview", max_queued_chunks=1, **CHUNKS)
    chunks = stream(fast, streamer=streamer, **texts(SMALL, [6]), **OPTIONS)
    next(chunks)
    chunks.close()
    # What nobody knows to be there fills no queue: a generation may be at its end before this one leaves.
    assert 1 <= side.ran < 12 or side.looks == NEVER


class FakeStream:
    def __init__(self, log: list[str], name: str):
        self._log, self.name = log, name

    def wait_stream(self, other: FakeStream) -> None:
        self._log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU that is not there was asked for."""
    said: list[str] = []
    current, side = FakeStream(said, "current"), FakeStream(said, "side")
    place = [current]

    @contextlib.contextmanager
    def on_stream(stream: FakeStream) -> Iterator[None]:
        before, place[0] = place[0], stream
        try:
            yield
        finally:
            place[0] = before

    class FakeEvent:
        def record(self, stream: FakeStream) -> None:
            said.append(f"event on {stream.name}")

        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            said.append("host waits for the event")

    empty = torch.empty

    def pinned(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        said.append(f"pinned {pin_memory}")
        return empty(*size, **options)

    monkeypatch.setattr(cuda_streams, "_shared", {})
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: said.append(f"priority {priority}") or side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: place[0])
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: said.append(f"kept for {stream.name}"))
    return said


def test_a_side_stream_is_ordered_as_cuda_wants_it(log: list[str]) -> None:
    """Behind what made the codes, one event behind the copy to pinned memory, and codes that live as long as needed."""
    side = make_side_stream(torch.device("cuda", 0))
    assert isinstance(side, SideStream) and make_side_stream(torch.device("cpu")) is None
    codes = torch.ones(2, 3)

    def work() -> Tensor:
        log.append(f"work on {torch.cuda.current_stream(None).name}")  # type: ignore[attr-defined]
        return codes * 2

    waveform, done = side.run(work, codes, None)
    assert torch.equal(waveform, codes * 2) and done is not None and not done.query()
    expected = [
        "priority -1",
        "side waits for current",
        "work on side",
        "pinned True",
        "event on side",
        "kept for side",
    ]
    assert log == expected
    make_side_stream(torch.device("cuda", 0))
    assert log == expected, "one stream for all sound, for torch keeps memory for each"
