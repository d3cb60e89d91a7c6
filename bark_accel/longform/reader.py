"""A long text, said chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bark_accel._caller import warn_caller
from bark_accel.ops.idle_threads import end_idle_threads
from bark_accel.voices.preset import VoicePreset

from .chunk_store import ChunkStore
from .text import TextChunk
from .utterance import Utterance

# A voice is not carried on from less than this: a single word says little about it.
_MIN_CARRIED_S = 1.0
PARAGRAPH_PAUSE_S = 0.75
CHUNK_PAUSE_S = 0.25


class Saying(Protocol):
    """An utterance that was asked for."""

    asked_for_last: bool
    """It is generated only when `result` or an iterator asks for it, not before."""

    def __iter__(self) -> Iterator[Tensor]:
        """The audio as it comes, pieces [S] float32 on the CPU; raises what generating raises."""

    def result(self) -> Utterance:
        """Wait for the whole; raises what generating raises."""

    def add_done_callback(self, call: Callable[[], object]) -> None:
        """Have `call` called, in any thread, once it has ended; never for one that is asked for last."""


class Session(Protocol):
    """A speaker at work."""

    def say(self, text: str, voice: VoicePreset | None, seed: int, after: Saying | None) -> Saying:
        """Ask for an utterance that is heard after another one. Its audio depends on text, voice and seed alone."""


class Speaker(Protocol):
    """A model that says texts in a voice (a preset, or None), reproducibly for a seed."""

    sampling_rate: int
    frame_rate_hz: float
    utterance_s: float | None
    """The model's own longest utterance, or None where the caller set another one."""

    def session(self, rows: int) -> AbstractContextManager[Session]:
        """Generate up to so many utterances at once; leaving it ends what is going on."""


@dataclass(frozen=True)
class SpokenChunk:
    """Audio of one chunk of a long text, or with `stream=True` a piece of it.

    Parameters
    ----------
    index : int
        Number of the chunk, from 0.
    text : str
        Text of the whole chunk.
    audio : Tensor
        [S] float32 on the CPU; may be empty.
    pause_samples : int
        Samples of silence that follow: 0 unless `final`, and after the last chunk.
    final : bool
        The chunk ends with this audio. Always true without `stream=True`.
    preset : dict, optional
        The voice preset that the whole chunk makes (int64 arrays), for `save_voice_preset` or as a voice; None before
        the chunk's end, for an empty chunk, and with `policy="preview"`.
    cut : bool
        The chunk is as long as it was allowed to be: the end of its text may be missing. False before its end.
    """

    index: int
    text: str
    audio: Tensor
    pause_samples: int
    final: bool
    preset: VoicePreset | None
    cut: bool

    @property
    def audio_and_pause(self) -> Tensor:
        """[S + pause_samples]."""
        # torch would start threads, which slow the engine that goes on meanwhile.
        return torch.from_numpy(np.pad(self.audio.numpy(), (0, self.pause_samples)))


@dataclass(frozen=True)
class LongTextOptions:
    """See `bark_accel.long_form`."""

    seed: int
    batch_size: int
    carry_voice: bool
    stream: bool
    paragraph_pause_s: float
    chunk_pause_s: float
    on_progress: Callable[[int, int], None] | None


class LongForm:
    """A long text, planned; iterating over it generates `SpokenChunk`s in order. Made by `bark_accel.long_form`.

    Every iteration begins with the first chunk and gives the same audio; with a work folder, chunks that are there are
    read instead of generated. `len()` is the number of chunks.

    Attributes
    ----------
    chunks : tuple of TextChunk
        What will be said in each generation.
    sampling_rate : int
        Samples per second.
    """

    def __init__(
        self,
        speaker: Speaker,
        chunks: Sequence[TextChunk],
        voice: VoicePreset | None,
        options: LongTextOptions,
        store: ChunkStore | None,
    ):
        self.chunks = tuple(chunks)
        self.sampling_rate = speaker.sampling_rate
        self._speaker = speaker
        self._voice = voice
        self._options = options
        self._store = store

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[SpokenChunk]:
        """Raises what generating raises, and `ValueError` where another run uses the work folder."""
        kept = nullcontext() if self._store is None else self._store.locked()
        with kept, self._speaker.session(min(self._options.batch_size, len(self))) as session:
            yield from _Run(self, session).spoken()

    def waveform(self) -> Tensor:
        """Generate all, or read what is there: the audio with its pauses, [S] float32 on the CPU."""
        return torch.cat([chunk.audio_and_pause for chunk in self])


class _Run:
    """One iteration: chunks are begun ahead of the one that is given out, and kept as they are ready."""

    def __init__(self, text: LongForm, session: Session):
        self._chunks, self._speaker, self._store = text.chunks, text._speaker, text._store
        self._options, self._voice, self._session = text._options, text._voice, session
        # Of chunks that were begun.
        self._going: dict[int, Saying] = {}
        self._ready: dict[int, Utterance | Exception] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()
        self._begun = self._told = 0
        self._last: Saying | None = None

    def spoken(self) -> Iterator[SpokenChunk]:
        """All chunks in their order."""
        for index in range(len(self._chunks)):
            self._begin(index)
            streamed = False
            if self._options.stream and index in self._going:
                for piece in self._going[index]:
                    streamed = True
                    self._begin_ahead(index)
                    yield SpokenChunk(index, self._chunks[index].text, piece, 0, final=False, preset=None, cut=False)
            self._begin_ahead(index)
            utterance = self._result(index)
            if self._options.carry_voice:
                self._voice = self._carried(utterance)
            yield self._spoken(index, utterance, streamed=streamed)

    def _begin_ahead(self, index: int) -> None:
        """Begin chunks after this one: as many again as are generated at once, so that no row waits for the listener.

        A stream begins them only when its own first sound is there, which is sooner so.
        """
        if not self._options.carry_voice:
            self._begin(min(index + 2 * self._options.batch_size, len(self._chunks)) - 1)
        while not self._ended.empty():
            self._take(self._ended.get())

    def _begin(self, last: int) -> None:
        """Begin all chunks up to this one."""
        for index in range(self._begun, last + 1):
            found = None if self._store is None else self._store.read(index)
            if found is None:
                seed = chunk_seed(self._options.seed, index)
                saying = self._session.say(self._chunks[index].text, self._voice, seed, self._last)
                self._going[index] = self._last = saying
                saying.add_done_callback(partial(self._ended.put, index))
            else:
                self._ready[index] = found
                self._tell_progress()
            self._begun = index + 1

    def _result(self, index: int) -> Utterance:
        """Wait for a chunk, and keep others that are ready meanwhile."""
        while index not in self._ready:
            end_idle_threads()
            self._take(index if self._going[index].asked_for_last else self._ended.get())
        ready = self._ready.pop(index)
        if isinstance(ready, Exception):
            raise ready
        return ready

    def _take(self, index: int) -> None:
        """Keep a chunk that has ended; its error waits for its turn."""
        try:
            utterance = self._going.pop(index).result()
        except Exception as error:
            self._ready[index] = error
            return
        if self._store is not None:
            self._store.write(index, utterance)
        self._ready[index] = utterance
        if utterance.cut and self._speaker.utterance_s is not None:
            warn_caller(
                f"chunk {index} is as long as Bark can speak at once ({self._speaker.utterance_s:.1f} s), so the "
                "end of its text may be missing; lower characters_per_second or max_chunk_s"
            )
        self._tell_progress()

    def _tell_progress(self) -> None:
        self._told += 1
        if self._options.on_progress is not None:
            self._options.on_progress(self._told, len(self._chunks))

    def _spoken(self, index: int, utterance: Utterance, *, streamed: bool) -> SpokenChunk:
        chunk, options = self._chunks[index], self._options
        audio = utterance.audio[:0] if streamed else utterance.audio
        pause_s = options.paragraph_pause_s if chunk.ends_paragraph else options.chunk_pause_s
        pause_s *= 2 if chunk.break_follows else 1
        pause = 0 if index + 1 == len(self._chunks) else round(pause_s * self._speaker.sampling_rate)
        return SpokenChunk(index, chunk.text, audio, pause, final=True, preset=utterance.preset, cut=utterance.cut)

    def _carried(self, utterance: Utterance) -> VoicePreset | None:
        """The voice of the next chunk."""
        enough = utterance.preset is not None and (
            utterance.preset["coarse_prompt"].shape[1] >= _MIN_CARRIED_S * self._speaker.frame_rate_hz
        )
        return utterance.preset if enough else self._voice


def chunk_seed(seed: int, index: int) -> int:
    """Derive the seed of a chunk: 32 bits, as many as torch's CPU generator uses."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
