"""A streamer as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from support.generations import Generation, boom, on_call
from support.waiting import LIMIT_S

from bark_accel import AudioStreamer

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind", "uncaught")


class TestAsync:
    def test_equals_the_other_iterator(self, fast, monkeypatch):
        ticked = threading.Event()
        # In its coarse stage the generation waits until the event loop has had others' turns.
        on_call(monkeypatch, "coarse", lambda: ticked.wait(LIMIT_S) or boom())

        async def listen():
            streamer = AudioStreamer(fast, first_chunk_frames=8)
            generation, ticks = Generation(fast, streamer), 0

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    if ticks > 2:
                        ticked.set()
                    await asyncio.sleep(0.005)

            ticking = asyncio.create_task(tick())
            chunks = [chunk async for chunk in streamer]
            ticking.cancel()
            generation.join()
            assert [chunk async for chunk in streamer] == []
            return torch.cat(chunks, dim=1), generation.audio

        got, expected = asyncio.run(listen())
        assert torch.equal(got, expected)

    def test_errors_and_timeouts(self, fast, monkeypatch, uncaught):
        async def listen(streamer):
            return [chunk async for chunk in streamer]

        with pytest.raises(TimeoutError, match="no generation has started"):
            asyncio.run(listen(AudioStreamer(fast, timeout=0.05)))
        on_call(monkeypatch, "coarse", boom)
        streamer = AudioStreamer(fast)
        generation = Generation(fast, streamer)
        with pytest.raises(RuntimeError, match="boom"):
            asyncio.run(listen(streamer))
        assert generation.ends() and streamer._async_waiters == []

    def test_a_cancelled_task_leaves_the_queue_usable(self, fast):
        async def listen():
            streamer = AudioStreamer(fast)
            task = asyncio.create_task(streamer.__anext__())
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert streamer._async_waiters == []
            generation = Generation(fast, streamer)
            chunks = [chunk async for chunk in streamer]
            generation.join()
            return chunks

        assert asyncio.run(listen())
