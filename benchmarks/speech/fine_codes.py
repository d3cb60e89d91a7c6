"""Distance from stock of the approximate fine stages: small Bark, the same coarse codes each way.

python -m benchmarks fine-codes --json NEW.json

Word errors do not tell a stream without fine codes from stock; these figures do. The small Bark's fine stage takes the
most likely code; "stock, drawn at 0.5" draws as suno's models do: what difference a draw makes in stock itself.
Utterances that fill a window are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BarkModel
from transformers.models.bark import generation_configuration_bark as configs

from bark_accel import AudioStreamer, accelerate_bark, small_bark_path
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers
from bark_accel.hf.presets import generate_with_presets
from bark_accel.hf.stage_trace import trace_stages
from recipes.small_bark.evaluate import KINDS, texts

SEED = 2_027
Figures = dict[str, float | None]
_CHUNKS_OF_8 = {"policy": "low_latency", "first_chunk_frames": 8, "max_chunk_frames": 8, "lookahead_frames": 0}
# Options of accelerate_bark, settings of an AudioStreamer.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "fitting windows": ({"fit_windows": True}, None),
    "int8": ({"weights": "int8"}, None),
    "w8a8": ({"weights": "w8a8"}, None),
    "low_latency": ({}, {"policy": "low_latency"}),
    "low_latency, fitting windows": ({"fit_windows": True}, {"policy": "low_latency"}),
    "chunks of 8 frames": ({}, _CHUNKS_OF_8),
}


class Stock:
    """Stock's model: codes of coarse codes, the sound of codes, and how likely it finds them."""

    def __init__(self, model: BarkModel):
        given = model.generation_config
        self.model, self.codebook_size = model, given.codebook_size
        self._configs = (
            configs.BarkSemanticGenerationConfig(**given.semantic_config),
            configs.BarkCoarseGenerationConfig(**given.coarse_acoustics_config),
            configs.BarkFineGenerationConfig(**given.fine_acoustics_config),
        )
        self.window = self._configs[2].max_fine_input_length
        self.coarse_codebooks = self._configs[1].n_coarse_codebooks

    def fine(self, model: BarkModel, coarse: Tensor, **options: Any) -> Tensor:
        """Codes [K, T] by the fine stage of `model`, for coarse tokens [1, 2 * T]."""
        torch.manual_seed(SEED)
        return model.fine_acoustics.generate(coarse, *self._configs, codebook_size=self.codebook_size, **options)[0]

    def sound(self, codes: Tensor) -> Tensor:
        return self.model.codec_decode(codes[None])[0].float()

    def nats(self, codes: Tensor) -> float:
        """Mean surprise a fine code [K, T], each after the codebooks before it, in stock's window."""
        frames, coarse = codes.shape[1], self.coarse_codebooks
        window = torch.full((1, self.window, len(codes)), self.codebook_size)
        window[0, :frames, :coarse] = codes[:coarse].t()
        total = 0.0
        for codebook in range(coarse, len(codes)):
            scores = self.model.fine_acoustics(codebook, window).logits[0, :frames, : self.codebook_size]
            total -= scores.log_softmax(-1).gather(1, codes[codebook][:, None]).mean().item()
            window[0, :frames, codebook] = codes[codebook]
        return total / (len(codes) - coarse)


def spectrum(wave: Tensor) -> Tensor:
    """Power [frequencies, frames] of windows of 32 ms, 8 ms apart (16 kHz)."""
    return torch.stft(wave, 512, 128, window=torch.hann_window(512), return_complex=True).abs().square()


def log_spectral_distance(wave: Tensor, expected: Tensor) -> float:
    """dB, of powers down to 80 dB below the loudest."""
    powers = [spectrum(w) for w in (wave, expected)]
    floor = powers[1].max() * 1e-8
    levels = [10 * p.clamp(min=floor).log10() for p in powers]
    return (levels[0] - levels[1]).square().mean(0).sqrt().mean().item()


def mel_cepstral_distortion(wave: Tensor, expected: Tensor) -> float:
    """dB, of coefficients 1 to 13 of 40 mel bands, frame by frame."""
    cepstra = [_cepstrum(w, spectrum(expected).max() * 1e-8) for w in (wave, expected)]
    difference = (cepstra[0] - cepstra[1])[1:14]
    return (10 / np.log(10) * (2 * difference.square().sum(0)).sqrt()).mean().item()


def _cepstrum(wave: Tensor, floor: Tensor) -> Tensor:
    bands = (_mel_bands(40) @ spectrum(wave)).clamp(min=floor).log()
    k, n = torch.arange(40)[:, None], torch.arange(40)[None]
    return (torch.cos(torch.pi / 40 * (n + 0.5) * k) @ bands) * (2 / 40) ** 0.5


def _mel_bands(count: int, rate: int = 16_000, bins: int = 257) -> Tensor:
    """Triangles [count, bins], evenly spaced on the mel scale."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = torch.tensor(700 * (10 ** (np.linspace(0, top, count + 2) / 2595) - 1), dtype=torch.float32)
    hertz = torch.linspace(0, rate / 2, bins)[None]
    low, mid, high = (edges[i : count + i, None] for i in range(3))
    return torch.minimum((hertz - low) / (mid - low), (high - hertz) / (high - mid)).clamp(min=0)


def streamed(model: BarkModel, inputs: Any, settings: dict[str, Any]) -> Tensor:
    """Codes [K, T] of a stream."""
    torch.manual_seed(SEED)
    preset = generate_with_presets(model, **inputs, streamer=AudioStreamer(model, **settings))[2][0]
    assert preset is not None
    return torch.from_numpy(preset["fine_prompt"])


def compare(stock: Stock, codes: Tensor, expected: Tensor, coarse: int) -> Figures | None:
    """Figures of codes [K, T]; None where a near tie led to other coarse codes."""
    if codes.shape[1] != expected.shape[1] or not torch.equal(codes[:coarse], expected[:coarse]):
        return None
    wave, stocks = stock.sound(codes), stock.sound(expected)
    whole = len(codes) == len(expected)
    return {
        "same_fine_codes": (codes[coarse:] == expected[coarse:]).float().mean().item() if whole else None,
        "nats_a_fine_code": stock.nats(codes) if whole else None,
        "log_spectral_distance_db": log_spectral_distance(wave, stocks),
        "mel_cepstral_distortion_db": mel_cepstral_distortion(wave, stocks),
    }


@torch.no_grad()
def measure(count: int) -> dict[str, Figures]:
    stock = Stock(BarkModel.from_pretrained(small_bark_path()).eval())
    processor, coarse = AutoProcessor.from_pretrained(small_bark_path()), stock.coarse_codebooks
    models = {name: accelerate_bark(copy.deepcopy(stock.model), strict=True, **way[0]) for name, way in WAYS.items()}
    found: dict[str, list[Figures | None]] = {}
    for text in [text for kind in KINDS for text in texts(kind, "test", count // len(KINDS), SEED)]:
        inputs = processor(text)
        torch.manual_seed(SEED)
        with trace_stages(stock.model) as trace:
            stock.model.generate(**inputs)
        expected, tokens = trace.outputs["fine"][0], trace.outputs["coarse"]
        if expected.shape[1] >= stock.window:
            continue
        codes = {"stock": expected, "stock, drawn at 0.5": stock.fine(stock.model, tokens, temperature=0.5)}
        for name, (_, settings) in WAYS.items():
            model = models[name]
            codes[name] = stock.fine(model, tokens) if settings is None else streamed(model, inputs, settings)
        codes["preview"] = expected[:coarse]
        for name, its in codes.items():
            found.setdefault(name, []).append(compare(stock, its, expected, coarse))
    return {name: _means(figures) for name, figures in found.items()}


def _means(figures: list[Figures | None]) -> Figures:
    kept = [f for f in figures if f is not None]
    means = {key: None if kept[0][key] is None else float(np.mean([f[key] for f in kept])) for key in kept[0]}
    return {"utterances": len(kept), **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="texts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    found = measure(options.count)
    for name, figures in found.items():
        print(f"{name:30}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items() if v is not None))
    if options.json:
        record = {"machine": machine_facts(), "versions": versions(), "commit": commit(), "ways": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
