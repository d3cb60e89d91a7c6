"""Figures of how well a model holds a voice: similarity of its speech to the sound of the preset itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.hf.configs import sample_rate
from bark_accel.voices.preset import VoicePreset

from .speaker import SpeakerEncoder


@dataclass(frozen=True)
class Held:
    """One voice: cosine similarities of its utterances to its preset's sound, and on average to other presets'.

    Utterances without any sound are counted in `silent`, and have none.
    """

    voice: str
    to_preset: list[float] = field(default_factory=list)
    to_others: list[float] = field(default_factory=list)
    silent: int = 0

    @property
    def score(self) -> float:
        """The figure that voices are ranked by: the mean similarity to the preset, where silence has none (0)."""
        return sum(self.to_preset) / max(len(self.to_preset) + self.silent, 1)


class Presets:
    """Embeddings of the sound that presets themselves make.

    Parameters
    ----------
    model : BarkModel
        Its codec is used.
    presets : dict
        By name.

    Raises
    ------
    ValueError
        A preset is silence.
    """

    def __init__(self, model: BarkModel, presets: Mapping[str, VoicePreset], encoder: SpeakerEncoder):
        self._encoder, self._rate = encoder, sample_rate(model)
        self.embeddings: dict[str, Tensor] = {}
        for name, preset in presets.items():
            embedding = self.embed(preset_sound(model, preset))
            if embedding is None:
                raise ValueError(f"voice {name}: expected a preset with sound, got silence")
            self.embeddings[name] = embedding

    def embed(self, wave: Tensor) -> Tensor | None:
        """Embed samples [S] of this model; None for silence."""
        return self._encoder.embed(wave, self._rate)

    def similarity(self, embedding: Tensor, voice: str) -> float:
        """Compare an embedding with a preset's."""
        return float(embedding @ self.embeddings[voice])

    def add(self, held: Held, wave: Tensor) -> Held:
        """Return the figures with one more utterance, [S]."""
        embedding = self.embed(wave)
        if embedding is None:
            return Held(held.voice, held.to_preset, held.to_others, held.silent + 1)
        others = [self.similarity(embedding, name) for name in self.embeddings if name != held.voice]
        return Held(
            held.voice,
            [*held.to_preset, self.similarity(embedding, held.voice)],
            [*held.to_others, *([statistics.fmean(others)] if others else [])],
            held.silent,
        )


@torch.no_grad()
def preset_sound(model: BarkModel, preset: VoicePreset) -> Tensor:
    """Decode a preset's own codes, [S] float32 on the CPU."""
    codes = torch.from_numpy(preset["fine_prompt"]).to(model.device, torch.int64)
    return model.codec_decode(codes[None])[0].float().cpu()


def rank_voices(
    presets: Presets,
    texts: Iterable[str],
    say: Callable[[str, str], Tensor],
    *,
    seconds: float,
    at_least: int,
) -> Iterator[list[Held]]:
    """Say texts in every voice, until `seconds` have passed and `at_least` are said; rank the voices after each.

    Parameters
    ----------
    texts : iterable of str
        Each is said by all voices before the next one, so that a short run has heard of all.
    say : callable
        Samples [S] of a text in the voice of that name.

    Yields
    ------
    list of Held
        The voices heard so far, the one that holds best first.
    """
    end = time.monotonic() + seconds
    held: dict[str, Held] = {}
    for number, (text, voice) in enumerate((text, voice) for text in texts for voice in presets.embeddings):
        if number >= at_least and time.monotonic() > end:
            return
        held[voice] = presets.add(held.get(voice, Held(voice)), say(text, voice))
        yield sorted(held.values(), key=lambda its: -its.score)
