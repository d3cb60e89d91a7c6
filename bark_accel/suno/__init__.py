"""suno's own API on accelerated stages: `from bark import ...` becomes `from bark_accel.suno import ...`.

from bark_accel.suno import SAMPLE_RATE, generate_audio, preload_models

`bark.api` and `bark.generation` are `bark_accel.suno.api` and `bark_accel.suno.generation`. Tokens are those of suno's
code for the same seed; docs/suno.md lists what is different.
"""

from .api import generate_audio, save_as_prompt, semantic_to_waveform, text_to_semantic
from .generation import (
    SAMPLE_RATE,
    clean_models,
    codec_decode,
    generate_coarse,
    generate_fine,
    generate_text_semantic,
    preload_models,
    use_model,
)

__all__ = [
    "SAMPLE_RATE",
    "clean_models",
    "codec_decode",
    "generate_audio",
    "generate_coarse",
    "generate_fine",
    "generate_text_semantic",
    "preload_models",
    "save_as_prompt",
    "semantic_to_waveform",
    "text_to_semantic",
    "use_model",
]
