"""Search for a low-latency stream's layout: length of chunks and lookahead, place of its frames in the fine window.

python -m benchmarks layouts --json benchmarks/results/cpu_streaming_layout.json

The small Bark says texts of the development split; all layouts get the same coarse codes. Measured: the share of fine
codes that are those of the whole utterance, the log-spectral distance of the sound, and word errors.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, small_bark_path
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.presets import generate_with_presets
from bark_accel.hf.transformer import transformer_spec
from bark_accel.stages.fine import FineStage
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FineSpec
from bark_accel.streaming.policies import Hops, LowLatency
from recipes.small_bark.evaluate import KINDS, listen, texts
from recipes.small_bark.recogniser import Errors, rate_difference, word_error_rate
from recipes.small_bark.vocabulary import Kind

SEED = 11
# Of log-spectral distance.
_WINDOW, _HOP, _FLOOR = 512, 128, 1e-3
# Frames that the longest hop has: what is left of any utterance.
_REST = 480


@dataclass(frozen=True)
class Layout:
    """Frames of the first chunk, growth and largest length of those after it, frames of lookahead.

    `anchored`: what was given out before fills the window in front of the new frames. Else as many frames of it as in
    the windows of Transformers, and padding after the new ones. The same where less than that was given out: in short
    utterances, and always with one chunk before the rest.
    """

    first: int
    growth: float
    largest: int
    lookahead: int
    anchored: bool = False

    @property
    def name(self) -> str:
        rest = {1: "all alike", 2: "doubling", math.inf: "then the rest"}[self.growth]
        return f"{self.first}, {rest}, lookahead {self.lookahead}{', anchored' if self.anchored else ''}"


LAYOUTS = [
    *(Layout(first, 1, first, lookahead) for first in (8, 15, 30) for lookahead in (0, 15)),
    *(Layout(first, 1, first, 15, anchored=True) for first in (8, 15, 30)),
    *(Layout(first, math.inf, _REST, 15) for first in (15, 60)),
    *(Layout(30, math.inf, _REST, lookahead) for lookahead in (0, 5, 15, 30)),
    *(Layout(30, 2, _REST, 15, anchored) for anchored in (False, True)),
]


class OneWindow(FineStage):
    """Never more than one window, and of it only what follows the history is written."""

    def _windows(self, frames: int, history_frames: int, padded_frames: int) -> list[tuple[int, int]]:
        return [(0, history_frames)]


class Anchored(LowLatency):
    """The history takes all the room that new frames leave; at least that of Transformers' windows."""

    def __init__(self, stage: Callable[[int], FineStage], *settings: Any) -> None:
        self._stage = stage
        super().__init__(stage(0), *settings)

    def _complete(self, frames: int) -> Tensor | None:
        (before,) = self._histories
        if self._state is None:
            self._fine = self._stage(self._tokens(frames).shape[1] // self._fine.spec.num_coarse_codebooks)
        codes = super()._complete(frames)
        if codes is not None:
            self._histories = [codes[0] if before is None else torch.cat([before, codes[0]], dim=1)]
        return codes


class Bench:
    """The small Bark, the texts, and what it says of each when it has all the time."""

    def __init__(self, count: int) -> None:
        path = Path(small_bark_path())
        processor = AutoProcessor.from_pretrained(path)
        self.model = accelerate_bark(BarkModel.from_pretrained(path).eval(), strict=True)
        self.said = {kind: texts(kind, "dev", count, SEED) for kind in KINDS}
        self.codes: dict[Kind, list[Tensor]] = {kind: [] for kind in KINDS}
        for kind, said in self.said.items():
            for index, text in enumerate(said):
                torch.manual_seed(SEED + index)
                _, _, (preset,) = generate_with_presets(self.model, **processor(text))
                self.codes[kind].append(torch.from_numpy(preset["fine_prompt"]))
        self.waves = {kind: [self._wave(codes) for codes in its] for kind, its in self.codes.items()}
        self.errors = self._errors(self.waves)
        self.spec = GenerationConfigs.of(self.model).fine_spec
        self.stage = self._stage(FineStage, self.spec)

    def _stage(self, kind: type[FineStage], spec: FineSpec) -> FineStage:
        patch = self.model.fine_acoustics.generate.__self__
        weights = patch.converted(patch.prepare())
        return kind(weights, transformer_spec(patch.module), spec, patch.ops(weights.device))

    def _anchored_stage(self, new_frames: int) -> FineStage:
        room = self.spec.max_input_frames - new_frames
        if room <= self.spec.max_history_frames:
            return self.stage
        return self._stage(OneWindow, replace(self.spec, max_history_frames=room))

    def measure(self, layout: Layout) -> dict[str, Any]:
        codes = {kind: [self._streamed(layout, whole) for whole in its] for kind, its in self.codes.items()}
        waves = {kind: [self._wave(row) for row in its] for kind, its in codes.items()}
        first = self.spec.num_coarse_codebooks
        same = [(a[first:] == b[first:]).double().mean().item() for a, b in _pairs(codes, self.codes)]
        errors = self._errors(waves)
        difference, low, high = rate_difference(errors, self.errors)
        return {
            **asdict(layout),
            "same_fine_codes": float(np.mean(same)),
            "log_spectral_distance_db": float(np.mean([_distance(a, b) for a, b in _pairs(waves, self.waves)])),
            "word_error_rate": word_error_rate(errors)[0],
            "above_whole": {"difference": difference, "interval": [low, high]},
        }

    def _streamed(self, layout: Layout, whole: Tensor) -> Tensor:
        hops = Hops(layout.first, layout.growth, layout.largest)
        settings = (hops, layout.lookahead, [None], FineSampling(1.0), Generator())
        policy = Anchored(self._anchored_stage, *settings) if layout.anchored else LowLatency(self.stage, *settings)
        offsets = self.spec.semantic_vocab_size + self.spec.codebook_size * torch.arange(self.spec.num_coarse_codebooks)
        policy.plan([whole.shape[1]])
        parts: list[Tensor] = []
        for frame in (whole[: len(offsets)] + offsets[:, None]).T:
            policy.push(frame.split(1))
            while policy.ready():
                part = policy.take()
                parts += [] if part is None else [part[0]]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def _wave(self, codes: Tensor) -> np.ndarray:
        return self.model.codec_decode(codes[None])[0].numpy()

    def _errors(self, waves: dict[Kind, list[np.ndarray]]) -> list[Errors]:
        return [item.errors for kind in KINDS for item in listen(waves[kind], self.said[kind], kind)]


def _pairs(one: dict[Kind, list[Any]], other: dict[Kind, list[Any]]) -> Iterator[tuple[Any, Any]]:
    for kind in KINDS:
        yield from zip(one[kind], other[kind], strict=True)


def _distance(wave: np.ndarray, other: np.ndarray) -> float:
    """Log-spectral distance, dB: root mean square over frequencies, mean over time."""
    levels = [20 * _spectrum(part).clamp_min(_FLOOR).log10() for part in (wave, other)]
    return (levels[0] - levels[1]).square().mean(dim=0).sqrt().mean().item()


def _spectrum(wave: np.ndarray) -> Tensor:
    window = torch.hann_window(_WINDOW)
    return torch.stft(torch.from_numpy(wave), _WINDOW, _HOP, window=window, return_complex=True).abs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="texts of each kind")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    quiet_transformers()
    bench = Bench(options.count)
    rate, low, high = word_error_rate(bench.errors)
    whole = {"word_error_rate": rate, "interval": [low, high], "words": sum(errors.words for errors in bench.errors)}
    layouts = {}
    for layout in LAYOUTS:
        layouts[layout.name] = bench.measure(layout)
        print(layout.name, layouts[layout.name], flush=True)
    facts = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
    settings = {"split": "dev", "seed": SEED, "texts_of_each_kind": options.count, "whole": whole}
    options.json.write_text(json.dumps({**facts, **settings, "layouts": layouts}, indent=1) + "\n")
