"""Times at which the chunks of a stream were ready, and at which a listener would hear them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BarkModel

from bark_accel import AudioStreamer, StreamPlan, stream


@dataclass(frozen=True)
class Chunk:
    """Seconds after the call when it was ready, and its length in seconds of audio."""

    ready_s: float
    audio_s: float


@dataclass(frozen=True)
class Timeline:
    """One stream, played from its first chunk on."""

    chunks: tuple[Chunk, ...]
    total_s: float
    plan: StreamPlan | None = None

    @property
    def planned_at_s(self) -> list[float]:
        """Seconds at which each chunk was expected, by the plan and the first one's time; empty without a plan."""
        if self.plan is None or not self.plan.ready_s:
            return []
        late_s = self.chunks[0].ready_s - self.plan.ready_s[0]
        return [ready_s + late_s for ready_s in self.plan.ready_s[: len(self.chunks)]]

    @property
    def plays_at_s(self) -> list[float]:
        times, free_s = [], 0.0
        for chunk in self.chunks:
            times.append(max(chunk.ready_s, free_s))
            free_s = times[-1] + chunk.audio_s
        return times

    @property
    def underruns_s(self) -> list[float]:
        """The seconds of silence before each chunk that came too late."""
        ends = [t + c.audio_s for t, c in zip(self.plays_at_s, self.chunks, strict=True)]
        silences = [start - end for start, end in zip(self.plays_at_s[1:], ends, strict=False)]
        return [s for s in silences if s > 1e-9]

    @property
    def gaps_s(self) -> dict[str, float | None]:
        """Median and 95th percentile of the time from chunk to chunk."""
        gaps = [b.ready_s - a.ready_s for a, b in zip(self.chunks, self.chunks[1:], strict=False)]
        many = len(gaps) > 1
        return {
            "gap_p50_s": statistics.median(gaps) if gaps else None,
            "gap_p95_s": statistics.quantiles(gaps, n=20, method="inclusive")[-1] if many else (gaps or [None])[0],
        }


def run_stream(model: BarkModel, options: dict[str, Any], arguments: dict[str, Any], seed: int = 0) -> Timeline:
    torch.manual_seed(seed)
    streamer = AudioStreamer(model, **options)
    # Transformers changes some of its arguments in place.
    arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    start, chunks = time.perf_counter(), []
    for chunk in stream(model, streamer=streamer, **arguments):
        chunks.append(Chunk(time.perf_counter() - start, chunk.shape[1] / streamer.sampling_rate))
    return Timeline(tuple(chunks), time.perf_counter() - start, streamer.plan)
