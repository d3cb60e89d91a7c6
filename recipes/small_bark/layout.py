"""Token ids, rates and windows of the small Bark: none of them is suno's."""

from __future__ import annotations

from typing import Any

from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from .features import HOP, SAMPLE_RATE
from .tokens import CODEBOOK_SIZE, CODEBOOKS, SEMANTIC_TOKENS
from .vocabulary import words

CODEC_RATE = SAMPLE_RATE // HOP
SEMANTIC_RATE = CODEC_RATE // 2
# Coarse tokens of one semantic token.
RATIO = 2 * CODEC_RATE // SEMANTIC_RATE

# Text: what the tokenizer gives, from TEXT_OFFSET on.
TEXT_PAD, TEXT_UNKNOWN = "[PAD]", "[UNK]"
TEXT_TOKENS = [TEXT_PAD, TEXT_UNKNOWN, *words()]
TEXT_LENGTH = 16
SEMANTIC_END = SEMANTIC_TOKENS + 3
TEXT_OFFSET = SEMANTIC_TOKENS + 10
TEXT_PAD_ID = TEXT_OFFSET + len(TEXT_TOKENS) + 4
SEMANTIC_INFER = TEXT_PAD_ID + 1
SEMANTIC_INPUTS = SEMANTIC_INFER + 1
SEMANTIC_OUTPUTS = SEMANTIC_TOKENS + 6
MAX_SEMANTIC = 110

COARSE_PAD = SEMANTIC_TOKENS + 2 * CODEBOOK_SIZE + 3
COARSE_INFER = COARSE_PAD + 2
COARSE_VOCAB = COARSE_INFER + 1
COARSE_INPUT = 48
COARSE_HISTORY = 96
COARSE_WINDOW = 40

FINE_INPUT = 128
FINE_HISTORY = 64
FINE_PAD = CODEBOOK_SIZE


def generation_config(temperatures: dict[str, float]) -> dict[str, Any]:
    """Return the content of generation_config.json, with the temperature of each stage."""
    return {
        "model_type": "bark",
        "sample_rate": SAMPLE_RATE,
        "codebook_size": CODEBOOK_SIZE,
        "do_sample": True,
        "semantic_config": {
            "do_sample": True,
            "temperature": temperatures["semantic"],
            "eos_token_id": SEMANTIC_END,
            "pad_token_id": SEMANTIC_END,
            "semantic_pad_token": SEMANTIC_END,
            "max_new_tokens": MAX_SEMANTIC,
            "max_input_semantic_length": TEXT_LENGTH,
            "semantic_infer_token": SEMANTIC_INFER,
            "semantic_rate_hz": float(SEMANTIC_RATE),
            "semantic_vocab_size": SEMANTIC_TOKENS,
            "text_encoding_offset": TEXT_OFFSET,
            "text_pad_token": TEXT_PAD_ID,
        },
        "coarse_acoustics_config": {
            "do_sample": True,
            "temperature": temperatures["coarse"],
            "coarse_infer_token": COARSE_INFER,
            "coarse_rate_hz": CODEC_RATE,
            "coarse_semantic_pad_token": COARSE_PAD,
            "max_coarse_history": COARSE_HISTORY,
            "max_coarse_input_length": COARSE_INPUT,
            "n_coarse_codebooks": 2,
            "sliding_window_len": COARSE_WINDOW,
        },
        "fine_acoustics_config": {
            "temperature": temperatures["fine"],
            "max_fine_history_length": FINE_HISTORY,
            "max_fine_input_length": FINE_INPUT,
            "n_fine_codebooks": CODEBOOKS,
        },
    }


def stage_configs(
    temperatures: dict[str, float],
) -> tuple[BarkSemanticGenerationConfig, BarkCoarseGenerationConfig, BarkFineGenerationConfig]:
    """The nested configs of `generation_config`, as the stages take them."""
    config = generation_config(temperatures)
    return (
        BarkSemanticGenerationConfig(**config["semantic_config"]),
        BarkCoarseGenerationConfig(**config["coarse_acoustics_config"]),
        BarkFineGenerationConfig(**config["fine_acoustics_config"]),
    )
