"""The model card: card.md, filled in with what the checkpoint is and with the measured figures."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from safetensors import safe_open

from . import layout
from .data import VOICES
from .features import SAMPLE_RATE
from .tokens import CODEBOOK_SIZE, CODEBOOKS, SEMANTIC_TOKENS
from .vocabulary import LONGEST, words


def write(checkpoint: Path, results: dict[str, Any]) -> str:
    """The card of the checkpoint in that folder, with what `evaluate` returned."""
    file = checkpoint / "model.safetensors"
    with safe_open(file, "np") as weights:
        parameters = sum(weights.get_tensor(name).size for name in list(weights.keys()))
    template = Template((Path(__file__).parent / "card.md").read_text())
    return template.substitute(
        millions=f"{parameters / 1e6:.1f}",
        megabytes=f"{file.stat().st_size / 1e6:.1f}",
        count=len(words()),
        words=", ".join(words()),
        sample_rate=SAMPLE_RATE,
        unknown=layout.TEXT_UNKNOWN,
        text_length=layout.TEXT_LENGTH,
        trained_words=LONGEST,
        seconds=f"{layout.MAX_SEMANTIC / layout.SEMANTIC_RATE:.1f}",
        limit=layout.MAX_SEMANTIC,
        batch=results["batch"],
        utterances=results["digits, no preset"]["utterances"],
        split=results["split"],
        seed=results["seed"],
        table=_table(results),
        corpus=", ".join(f"{training} of {voice}" for voice, (training, *_) in VOICES.items()),
        development=sum(development for _, development, _ in VOICES.values()),
        more=", ".join(f"{more} of {voice}" for voice, (*_, more) in VOICES.items()),
        semantic_tokens=SEMANTIC_TOKENS,
        semantic_rate=layout.SEMANTIC_RATE,
        codebooks=CODEBOOKS,
        codebook_size=CODEBOOK_SIZE,
        codec_rate=layout.CODEC_RATE,
    )


def _table(results: dict[str, Any]) -> str:
    lines = ["| texts, voice | word errors | 95 % interval | ended |", "| --- | --- | --- | --- |"]
    for name, figures in results.items():
        if isinstance(figures, dict):
            low, high = figures["interval"]
            ended = "" if "flite" in name else f"{figures['ended']:.0%}"
            lines.append(f"| {name} | {figures['word_error_rate']:.1%} | {low:.1%} to {high:.1%} | {ended} |")
    return "\n".join(lines)
