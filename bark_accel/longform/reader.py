"""A long text, said chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bark_accel._caller import warn_caller
from bark_accel.voices.preset import VoicePreset

from .chunk_store import ChunkStore
from .text import TextChunk
from .utterance import Utterance

# A voice is not carried on from less than this: a single word says little about it.
_MIN_CARRIED_S = 1.0
PARAGRAPH_PAUSE_S = 0.75
CHUNK_PAUSE_S = 0.25


class Speaker(Protocol):
    """A model that says texts in a voice (a preset, or None), reproducibly for a seed."""

    sampling_rate: int
    frame_rate_hz: float
    utterance_s: float | None
    """The model's own longest utterance, or None where the caller set another one."""

    def say(self, texts: Sequence[str], voice: VoicePreset | None, seed: int) -> list[Utterance]:
        """One utterance for each text, generated as one batch."""

    def stream(self, text: str, voice: VoicePreset | None, seed: int) -> Generator[Tensor, None, Utterance]:
        """Yields the audio [S] while it is generated; returns the whole utterance."""


@dataclass(frozen=True)
class SpokenChunk:
    """Audio of one chunk of a long text, or with `stream=True` a piece of it.

    Parameters
    ----------
    index : int
        Of the chunk, from 0.
    text : str
        Of the whole chunk.
    audio : Tensor
        [S] float32 on the CPU; may be empty.
    pause_samples : int
        Of silence that follow: 0 unless `final`, and after the last chunk.
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
        return torch.nn.functional.pad(self.audio, (0, self.pause_samples))


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
        voice, step = self._voice, self._options.batch_size
        with nullcontext() if self._store is None else self._store.locked():
            for start in range(0, len(self), step):
                for chunk in self._batch(range(start, min(start + step, len(self))), voice):
                    yield chunk
                    if self._options.carry_voice and chunk.final:
                        voice = self._carried(chunk, voice)

    def waveform(self) -> Tensor:
        """All audio with its pauses, [S] float32 on the CPU."""
        return torch.cat([chunk.audio_and_pause for chunk in self])

    def _batch(self, indices: range, voice: VoicePreset | None) -> Iterator[SpokenChunk]:
        found = [None if self._store is None else self._store.read(index) for index in indices]
        if any(utterance is None for utterance in found):
            # Rows of a batch share the random numbers, so it is generated as a whole again.
            seed = chunk_seed(self._options.seed, indices[0])
            if self._options.stream:
                said = [(yield from self._streamed(indices[0], voice, seed))]
            else:
                said = self._speaker.say([self.chunks[index].text for index in indices], voice, seed)
            self._keep(indices, said)
            if self._options.stream:
                said = [Utterance(torch.empty(0, dtype=torch.float32, device="cpu"), said[0].preset, said[0].cut)]
        else:
            said = [utterance for utterance in found if utterance is not None]
        for index, utterance in zip(indices, said, strict=True):
            if self._options.on_progress is not None:
                self._options.on_progress(index + 1, len(self))
            yield self._spoken(index, utterance)

    def _streamed(self, index: int, voice: VoicePreset | None, seed: int) -> Generator[SpokenChunk, None, Utterance]:
        text = self.chunks[index].text
        pieces = self._speaker.stream(text, voice, seed)
        try:
            while True:
                yield SpokenChunk(index, text, next(pieces), 0, final=False, preset=None, cut=False)
        except StopIteration as end:
            return end.value
        finally:
            pieces.close()

    def _keep(self, indices: range, said: list[Utterance]) -> None:
        for index, utterance in zip(indices, said, strict=True):
            if self._store is not None:
                self._store.write(index, utterance)
            if utterance.cut and self._speaker.utterance_s is not None:
                warn_caller(
                    f"chunk {index} is as long as Bark can speak at once ({self._speaker.utterance_s:.1f} s), so the "
                    "end of its text may be missing; lower characters_per_second or max_chunk_s"
                )

    def _spoken(self, index: int, utterance: Utterance) -> SpokenChunk:
        chunk, options = self.chunks[index], self._options
        pause_s = options.paragraph_pause_s if chunk.ends_paragraph else options.chunk_pause_s
        pause_s *= 2 if chunk.break_follows else 1
        pause = 0 if index + 1 == len(self) else round(pause_s * self.sampling_rate)
        return SpokenChunk(
            index, chunk.text, utterance.audio, pause, final=True, preset=utterance.preset, cut=utterance.cut
        )

    def _carried(self, chunk: SpokenChunk, voice: VoicePreset | None) -> VoicePreset | None:
        """The voice of the next chunk."""
        enough = chunk.preset is not None and (
            chunk.preset["coarse_prompt"].shape[1] >= _MIN_CARRIED_S * self._speaker.frame_rate_hz
        )
        return chunk.preset if enough else voice


def chunk_seed(seed: int, index: int) -> int:
    """Derive the seed of a chunk: 32 bits, as many as torch's CPU generator uses."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
