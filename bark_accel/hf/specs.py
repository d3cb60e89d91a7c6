"""The numbers of each stage, read from Bark's generation configs."""

from __future__ import annotations

from typing import Any

from bark_accel.stages.spec import CoarseSpec, FineSpec, SemanticSpec


def semantic_spec(config: Any) -> SemanticSpec:
    """Read the semantic stage's numbers from a `BarkSemanticGenerationConfig`."""
    return SemanticSpec(
        vocab_size=config.semantic_vocab_size,
        pad_token=config.semantic_pad_token,
        infer_token=config.semantic_infer_token,
        text_encoding_offset=config.text_encoding_offset,
        text_pad_token=config.text_pad_token,
        max_input_tokens=config.max_input_semantic_length,
        rate_hz=config.semantic_rate_hz,
    )


def coarse_spec(semantic: Any, coarse: Any, codebook_size: int) -> CoarseSpec:
    """Read the coarse stage's numbers from a `BarkSemanticGenerationConfig` and a `BarkCoarseGenerationConfig`."""
    return CoarseSpec(
        semantic_vocab_size=semantic.semantic_vocab_size,
        semantic_pad_token=coarse.coarse_semantic_pad_token,
        semantic_rate_hz=semantic.semantic_rate_hz,
        infer_token=coarse.coarse_infer_token,
        codebook_size=codebook_size,
        num_codebooks=coarse.n_coarse_codebooks,
        rate_hz=coarse.coarse_rate_hz,
        max_input_tokens=coarse.max_coarse_input_length,
        max_history_tokens=coarse.max_coarse_history,
        window_tokens=coarse.sliding_window_len,
    )


def fine_spec(semantic: Any, coarse: Any, fine: Any, codebook_size: int) -> FineSpec:
    """Read the fine stage's numbers from the three generation configs."""
    return FineSpec(
        semantic_vocab_size=semantic.semantic_vocab_size,
        codebook_size=codebook_size,
        num_coarse_codebooks=coarse.n_coarse_codebooks,
        num_codebooks=fine.n_fine_codebooks,
        max_history_frames=fine.max_fine_history_length,
        max_input_frames=fine.max_fine_input_length,
    )
