"""Distance from stock of each named approximation of the fine stage, from the same coarse tokens.

Word errors do not tell a stream without fine codes from stock; these figures do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel import AudioStreamer, accelerate_bark
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.presets import generate_with_presets
from bark_accel.hf.stage_trace import trace_stages

from .models import shared_copy
from .sound import log_spectral_distance, mel_cepstral_distortion
from .speaker import SpeakerEncoder


@dataclass(frozen=True)
class Way:
    """One approximation: options of `accelerate_bark`, and settings of an `AudioStreamer` where it streams."""

    options: Mapping[str, Any]
    stream: Mapping[str, Any] | None = None


WAYS = {
    "float16": Way({"weights": "float16"}),
    "bfloat16": Way({"weights": "bfloat16"}),
    "int8": Way({"weights": "int8"}),
    "w8a8": Way({"weights": "w8a8"}),
    "fitting windows": Way({"fit_windows": True}),
    "low_latency": Way({}, {"policy": "low_latency"}),
}
# suno's fine stage draws at this temperature: what difference a draw makes in stock itself.
DRAWN = 0.5
PREVIEW, STOCK, ANOTHER_DRAW = "preview", "stock", f"stock, another draw at {DRAWN}"


@dataclass(frozen=True)
class SoundDistance:
    """Figures of one utterance beside stock's, or their means; None: no fine codes, not asked for, or silence.

    Share of fine codes that are stock's, mean surprise at a fine code in nats (by stock's fine stage), log-spectral
    distance and mel-cepstral distortion in dB, cosine similarity of the speakers.
    """

    same_fine_codes: float | None
    nats_a_fine_code: float | None
    log_spectral_distance_db: float
    mel_cepstral_distortion_db: float
    speaker_similarity: float | None = None


@dataclass(frozen=True)
class Utterance:
    """Stock's speech: arguments of `generate` (one row, no voice), a seed, coarse tokens [1, coarse codebooks * T]."""

    inputs: Mapping[str, Any]
    seed: int
    coarse: Tensor


class FineReference:
    """Stock's fine stage and codec: codes of coarse tokens, the sound of codes, how likely they are.

    Parameters
    ----------
    model : BarkModel
        Not accelerated, float32.
    likelihood : bool
        Measure how likely codes are, at the price of a fine stage each time.
    speakers : SpeakerEncoder, optional
        Compare the speakers.
    """

    def __init__(self, model: BarkModel, likelihood: bool, speakers: SpeakerEncoder | None = None):
        self.model, self.likelihood, self.speakers = model, likelihood, speakers
        self.configs = GenerationConfigs.of(model)
        self.window = self.configs.fine.max_fine_input_length
        self.coarse_codebooks = self.configs.coarse.n_coarse_codebooks

    def fine(self, model: BarkModel, said: Utterance, draw: int = 0, **options: Any) -> Tensor:
        """Codes [K, T] of an utterance by the fine stage of `model`; another draw for each number."""
        torch.manual_seed(said.seed + draw)
        c = self.configs
        stages = (c.semantic, c.coarse, c.fine)
        return model.fine_acoustics.generate(said.coarse, *stages, codebook_size=c.codebook_size, **options)[0]

    def distance(self, codes: Tensor, expected: Tensor) -> SoundDistance | None:
        """Compare codes [K, T] (fewer codebooks: a preview) with stock's; None where the coarse codes differ."""
        coarse = self.coarse_codebooks
        if codes.shape[1] != expected.shape[1] or not torch.equal(codes[:coarse], expected[:coarse]):
            return None
        waves = self._sound(codes), self._sound(expected)
        whole = len(codes) == len(expected)
        return SoundDistance(
            same_fine_codes=(codes[coarse:] == expected[coarse:]).float().mean().item() if whole else None,
            nats_a_fine_code=self._nats(codes) if whole and self.likelihood else None,
            log_spectral_distance_db=log_spectral_distance(*waves, self.configs.sample_rate),
            mel_cepstral_distortion_db=mel_cepstral_distortion(*waves, self.configs.sample_rate),
            speaker_similarity=self._similarity(*waves),
        )

    def _sound(self, codes: Tensor) -> Tensor:
        return self.model.codec_decode(codes[None])[0].float()

    def _similarity(self, wave: Tensor, expected: Tensor) -> float | None:
        if self.speakers is None:
            return None
        one, other = (self.speakers.embed(w, self.configs.sample_rate) for w in (wave, expected))
        return None if one is None or other is None else float(one @ other)

    def _nats(self, codes: Tensor) -> float:
        """Mean surprise at a fine code, each after the codebooks before it, in one window of stock's."""
        frames, coarse, size = codes.shape[1], self.coarse_codebooks, self.configs.codebook_size
        window = torch.full((1, self.window, len(codes)), size, dtype=torch.int64, device=codes.device)
        window[0, :frames, :coarse] = codes[:coarse].t()
        total = 0.0
        for codebook in range(coarse, len(codes)):
            scores = self.model.fine_acoustics(codebook, window).logits[0, :frames, :size]
            total -= scores.log_softmax(-1).gather(1, codes[codebook][:, None]).mean().item()
            window[0, :frames, codebook] = codes[codebook]
        return total / (len(codes) - coarse)


@torch.no_grad()
def say(stock: BarkModel, inputs: Mapping[str, Any], seed: int) -> Utterance:
    """Have stock, in float32, say one row without a voice."""
    torch.manual_seed(seed)
    with trace_stages(stock) as trace:
        stock.generate(**inputs)
    return Utterance(inputs, seed, trace.outputs["coarse"])


@torch.no_grad()
def sound_distances(
    stock: BarkModel,
    utterances: Iterable[Utterance],
    *,
    likelihood: bool = True,
    speakers: SpeakerEncoder | None = None,
    ways: Mapping[str, Way] = WAYS,
    wanted: Callable[[str], bool] = lambda way: True,
) -> Iterator[tuple[str, tuple[SoundDistance, int]]]:
    """Make the fine codes of each utterance by stock, then in each way, and yield each way's distance when it is known.

    Parameters
    ----------
    stock : BarkModel
        Not accelerated, float32.
    utterances : iterable of Utterance
        The next is asked for when stock has the codes of one. Those as long as a fine window are left out.
    likelihood : bool
        Measure how likely stock finds the codes, which takes as long as another fine stage of stock's for each.
    speakers : SpeakerEncoder, optional
        Measure how similar the speakers are.
    ways : dict
        By name; beside them come stock itself, coarse codes alone, and stock drawing another time.
    wanted : callable
        Asked with the name of each way but the first two as it is to start; False leaves it out.

    Yields
    ------
    tuple
        Name of a way, and with it the mean distance and the number of utterances: those whose coarse codes are
        stock's. A way without any is left out.
    """
    reference = FineReference(stock, likelihood, speakers)
    said = [(one, reference.fine(stock, one)) for one in utterances]
    said = [(one, codes) for one, codes in said if codes.shape[1] < reference.window]
    for name, its in _made(reference, said, ways, wanted):
        distances = [reference.distance(codes, expected) for codes, (_, expected) in zip(its, said, strict=True)]
        kept = [one for one in distances if one is not None]
        if kept:
            yield name, (_mean(kept), len(kept))


def _made(
    reference: FineReference,
    said: list[tuple[Utterance, Tensor]],
    ways: Mapping[str, Way],
    wanted: Callable[[str], bool],
) -> Iterator[tuple[str, list[Tensor]]]:
    """Codes of each utterance by way, from stock's."""
    utterances = [one for one, _ in said]
    yield STOCK, [codes for _, codes in said]
    yield PREVIEW, [codes[: reference.coarse_codebooks] for _, codes in said]
    if wanted(ANOTHER_DRAW):
        yield ANOTHER_DRAW, [reference.fine(reference.model, one, draw=1, temperature=DRAWN) for one in utterances]
    for name, way in ways.items():
        if wanted(name):
            yield name, _in_that_way(reference, utterances, way)


def _in_that_way(reference: FineReference, said: list[Utterance], way: Way) -> list[Tensor]:
    model = accelerate_bark(shared_copy(reference.model), **way.options)
    if way.stream is None:
        return [reference.fine(model, one) for one in said]
    return [_streamed(model, one, way.stream) for one in said]


def _streamed(model: BarkModel, said: Utterance, settings: Mapping[str, Any]) -> Tensor:
    torch.manual_seed(said.seed)
    streamer = AudioStreamer(model, **settings)
    preset = generate_with_presets(model, **said.inputs, streamer=streamer)[2][0]
    assert preset is not None
    return torch.from_numpy(preset["fine_prompt"]).to(said.coarse)


def _mean(figures: list[SoundDistance]) -> SoundDistance:
    def mean(name: str) -> Any:
        values = [getattr(one, name) for one in figures]
        return None if None in values else statistics.fmean(values)

    return SoundDistance(**{f.name: mean(f.name) for f in fields(SoundDistance)})
