"""Does the voice hold? Similarity of speakers along a long text of 20 chunks, each way it is said.

python -m benchmarks voices --json NEW.json      needs Resemblyzer's weights (pip install --no-deps resemblyzer)

Cosine similarities of voice embeddings: of each chunk to the sound of the preset it is said in, to that of the other
preset, and to stock's chunk. What stock says with another seed is the yardstick: so much differs by chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel import accelerate_bark, long_form
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import LoadedBark, load_bark, quiet_transformers, shared_copy
from bark_accel.bench.speaker import SpeakerEncoder
from bark_accel.bench.voices import Presets
from bark_accel.hf.voices import resolve_voice, voice_names
from recipes.small_bark.evaluate import KINDS, texts

CHUNKS = 20
SEED = 2_027
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Way:
    """One way to say a long text: `weights` of `accelerate_bark` (None: stock), arguments of `long_form`, its seed."""

    weights: str | None = "same"
    options: Mapping[str, Any] = field(default_factory=dict)
    another_seed: bool = False


STOCK = "stock"
WAYS = {
    STOCK: Way(None),
    "stock, another seed": Way(None, another_seed=True),
    "float32": Way(),
    "float16": Way("float16"),
    "int8": Way("int8"),
    "w8a8": Way("w8a8"),
    "low_latency": Way(options={"stream": True, "policy": "low_latency"}),
    "preview": Way(options={"stream": True, "policy": "preview"}),
    "float32, the voice carried on": Way(options={"carry_voice": True}),
    "int8, the voice carried on": Way("int8", options={"carry_voice": True}),
}


@dataclass(frozen=True)
class Said:
    """Embeddings [256] of the chunks of every voice and run, None for silence; keys (voice, seed, chunk)."""

    chunks: dict[tuple[str, int, int], Tensor | None]

    def kept(self) -> Iterator[tuple[tuple[str, int, int], Tensor]]:
        return ((key, one) for key, one in self.chunks.items() if one is not None)


def say(loaded: LoadedBark, presets: Presets, way: Way, runs: int) -> Said:
    """Say the text in every voice, as many times."""
    model = loaded.model if way.weights is None else accelerate_bark(shared_copy(loaded.model), weights=way.weights)
    # Chunks alternate in kind, so that the first ones are like the last.
    by_kind = [texts(kind, "test", CHUNKS // len(KINDS), SEED) for kind in KINDS]
    text = "\n\n".join(one for pair in zip(*by_kind, strict=True) for one in pair)
    chunks = {}
    for voice in presets.embeddings:
        for run in range(runs):
            seed = SEED + run + (runs if way.another_seed else 0)
            for index, wave in enumerate(chunk_waves(model, loaded.processor, text, voice, seed, way)):
                chunks[voice, run, index] = presets.embed(wave)
    return Said(chunks)


def chunk_waves(model: BarkModel, processor: Any, text: str, voice: str, seed: int, way: Way) -> list[Tensor]:
    """Samples [S] of each chunk."""
    pieces: dict[int, list[Tensor]] = {}
    for spoken in long_form(model, processor, text, voice=voice, seed=seed, batch_size=1, **way.options):
        pieces.setdefault(spoken.index, []).append(spoken.audio)
    if len(pieces) != CHUNKS:
        raise SystemExit(f"expected {CHUNKS} chunks, got {len(pieces)}")
    return [torch.cat(its) for _, its in sorted(pieces.items())]


def figures(said: Said, stock: Said, presets: Presets) -> dict[str, Any]:
    """Compute what stands in the table, with 95 % intervals (bootstrap over chunks)."""
    voices = list(presets.embeddings)
    own = {key: presets.similarity(one, key[0]) for key, one in said.kept()}
    others = [presets.similarity(one, voice) for key, one in said.kept() for voice in voices if voice != key[0]]
    both = [(one, other) for key, one in said.kept() if (other := stock.chunks[key]) is not None]
    parts = {part: [s for (_, _, chunk), s in own.items() if chunk in its] for part, its in _PARTS.items()}
    return {
        "chunks": len(own),
        "silent": len(said.chunks) - len(own),
        "to_preset": _mean(list(own.values())),
        "lowest_to_preset": min(own.values()),
        "to_other_preset": _mean(others),
        "nearer_to_other_preset": sum(
            own[key] < max(presets.similarity(one, voice) for voice in voices if voice != key[0])
            for key, one in said.kept()
        ),
        "to_stock": _mean([float(one @ other) for one, other in both]),
        **{part: _mean(its) for part, its in parts.items()},
        "by_voice": {voice: _mean([s for (v, _, _), s in own.items() if v == voice]) for voice in voices},
    }


_PARTS = {"first_five": range(5), "last_five": range(CHUNKS - 5, CHUNKS)}


def _mean(values: list[float]) -> dict[str, Any]:
    means = np.random.default_rng(SEED).choice(values, (_RESAMPLES, len(values))).mean(1)
    return {"mean": statistics.fmean(values), "interval": np.quantile(means, (0.025, 0.975)).tolist()}


def pairs_of_speakers(said: Said) -> dict[str, dict[str, Any]]:
    """Similarity of two chunks of different texts: by one speaker, and by two."""
    embeddings = [(key, one) for key, one in said.kept() if key[1] == 0]
    found: dict[str, list[float]] = {"same": [], "different": []}
    for number, (key, one) in enumerate(embeddings):
        for other_key, other in embeddings[:number]:
            if key[2] != other_key[2]:
                found["same" if key[0] == other_key[0] else "different"].append(float(one @ other))
    return {name: {**_mean(its), "lowest": min(its), "highest": max(its)} for name, its in found.items()}


def measure(runs: int, only: list[str] | None) -> dict[str, Any]:
    """Figures of all ways."""
    loaded = load_bark()
    loaded.model.float()
    named = {name: resolve_voice(loaded.processor, name) for name in voice_names(loaded.processor)}
    presets = Presets(loaded.model, {k: v for k, v in named.items() if v is not None}, SpeakerEncoder())
    stock = say(loaded, presets, WAYS[STOCK], runs)
    ways = {}
    for name, way in WAYS.items():
        if name == STOCK or only is None or name in only:
            ways[name] = figures(stock if name == STOCK else say(loaded, presets, way, runs), stock, presets)
            print(f"{name:30} to its preset {ways[name]['to_preset']['mean']:.3f}", flush=True)
    one, other = presets.embeddings.values()
    return {
        "chunks": CHUNKS,
        "runs": runs,
        "seed": SEED,
        "speakers": {"presets": float(one @ other), **pairs_of_speakers(stock)},
        "ways": ways,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="times that each voice says the text, each with a seed")
    parser.add_argument("--only", nargs="+", metavar="WAY", choices=list(WAYS), help="these, and stock")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    facts = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
    found = measure(options.runs, options.only)
    if options.json:
        options.json.write_text(json.dumps({**facts, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
