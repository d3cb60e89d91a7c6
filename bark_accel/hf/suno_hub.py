"""Loads models, codec and tokenizer of suno's from the Hub in Transformers' format, and knows their configs."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, AutoTokenizer, BarkModel, EncodecModel
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

CODEC = "facebook/encodec_24khz"
TOKENIZER = "bert-base-multilingual-cased"
CODEBOOK_SIZE = 1024


def load_model(name: str) -> BarkModel:
    """Load a whole model in eval mode; raises `OSError` where it cannot be had."""
    return BarkModel.from_pretrained(name).eval()


def load_processor(name: str) -> Any:
    """Load a model's processor; raises `OSError` where it cannot be had."""
    return AutoProcessor.from_pretrained(name)


def load_codec() -> EncodecModel:
    """Load EnCodec's 24 kHz model in eval mode; raises `OSError` where it cannot be had."""
    return EncodecModel.from_pretrained(CODEC).eval()


def load_tokenizer() -> Any:
    """Load the tokenizer that suno's text stage was trained with; raises `OSError` where it cannot be had."""
    return AutoTokenizer.from_pretrained(TOKENIZER)


def suno_configs() -> list[Any]:
    """The generation configs of suno's checkpoints, whose numbers are the defaults of Transformers' classes."""
    return [BarkSemanticGenerationConfig(), BarkCoarseGenerationConfig(), BarkFineGenerationConfig()]
