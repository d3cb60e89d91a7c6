"""Streams from an asyncio program: chunks arrive while other tasks run; leaving early stops the generation."""

from __future__ import annotations

import asyncio
from threading import Thread

from transformers import AutoProcessor, BarkModel

from bark_accel import AudioStreamer, accelerate_bark, small_bark_path

name = small_bark_path()
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))


async def speak(text: str) -> float:
    """Seconds of sound that came."""
    streamer = AudioStreamer(model, policy="low_latency")
    Thread(target=model.generate, kwargs={**processor(text), "streamer": streamer}).start()
    seconds = 0.0
    async for chunk in streamer:  # [1, samples]
        seconds += chunk.shape[1] / streamer.sampling_rate
        print(f"{seconds:.2f} s so far")
    return seconds


async def main() -> None:
    ticking = asyncio.create_task(asyncio.sleep(0.01, "other tasks go on"))
    await speak("one two three four five six")
    print(await ticking)


asyncio.run(main())
