"""Samples into the bytes of a sound format, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import av.filter
import numpy as np

PCM_RATE = 24_000
"""Samples per second of `pcm`, as OpenAI's API has it, whatever the model speaks at."""


@dataclass(frozen=True)
class Format:
    """A container and codec of FFmpeg's, and their options."""

    media_type: str
    container: str
    codec: str
    bit_rate: int | None = None
    rate: int | None = None
    options: dict[str, str] = field(default_factory=dict)


# Without Xing header and ID3 tag, which need a file that one can go back in; pages of Ogg of a tenth of a second.
FORMATS = {
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 64_000, options={"write_xing": "0", "id3v2_version": "0"}),
    "opus": Format("audio/ogg", "ogg", "libopus", 32_000, options={"page_duration": "100000"}),
    "aac": Format("audio/aac", "adts", "aac", 64_000),
    "flac": Format("audio/flac", "flac", "flac"),
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
    "pcm": Format("audio/pcm", "s16le", "pcm_s16le", rate=PCM_RATE),
}
# Each packet at once, and the same bytes every time.
_OPTIONS = {"flush_packets": "1", "fflags": "+bitexact"}
# The slowest that one filter does.
_SLOWEST = 0.5


class _Written:
    """The file of a container."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, content: bytes) -> int:
        """Take what the container writes."""
        self._pieces.append(bytes(content))
        return len(content)

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


class Encoder:
    """Encodes mono samples in pieces of any length; at normal speed, the bytes do not depend on how they were cut.

    Leaving its `with` block ends it, and FFmpeg's threads.

    Parameters
    ----------
    name : str
        One of `FORMATS`.
    rate : int
        Samples per second that come in.
    speed : float
        0.25 to 4, of normal: time is stretched, pitch stays.
    """

    def __init__(self, name: str, rate: int, speed: float = 1.0):
        chosen = FORMATS[name]
        self._rate, out_rate = rate, chosen.rate or rate
        self._file = _Written()
        self._samples, self._ended = 0, False
        self._filter = _filter(rate, out_rate, speed) if (speed, out_rate) != (1.0, rate) else None
        self._container = av.open(self._file, "w", format=chosen.container, options={**_OPTIONS, **chosen.options})
        stream = self._container.add_stream(chosen.codec, rate=out_rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._stream.codec_context.thread_count = 1
        if chosen.bit_rate is not None:
            self._stream.bit_rate = chosen.bit_rate

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._ended:
            # A resampler that is not told of the end is in a circle, and stays until the garbage collector comes.
            self.finish()
        del self._container, self._stream, self._filter

    def encode(self, samples: np.ndarray) -> bytes:
        """Take samples [S] float32; return what can be sent, maybe nothing."""
        if samples.size:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._samples, Fraction(1, self._rate)
            self._samples += samples.size
            self._mux(_filtered(self._filter, frame))
        return self._file.taken()

    def finish(self) -> bytes:
        """Return the end of the sound; nothing is taken any more."""
        self._ended = True
        if self._samples and self._filter is not None:
            self._mux(_filtered(self._filter, None))
        if self._samples:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.taken()

    def _mux(self, frames: Iterable[av.AudioFrame]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def _filter(rate: int, out_rate: int, speed: float) -> av.filter.Graph:
    """A chain that changes tempo and rate."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    tempos = [speed] if speed >= _SLOWEST else [_SLOWEST, speed / _SLOWEST]
    stretches = [graph.add("atempo", str(tempo)) for tempo in tempos if tempo != 1.0]
    resampled = graph.add("aformat", f"sample_fmts=flt:sample_rates={out_rate}:channel_layouts=mono")
    graph.link_nodes(source, *stretches, resampled, graph.add("abuffersink")).configure()
    return graph


def _filtered(graph: av.filter.Graph | None, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
    if graph is None:
        assert frame is not None
        yield frame
        return
    graph.push(frame)
    while True:
        try:
            pulled = graph.pull()
            assert isinstance(pulled, av.AudioFrame)
            yield pulled
        except (av.BlockingIOError, av.EOFError):
            return
