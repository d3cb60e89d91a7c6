"""Checks of what a caller passes, made before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bark_accel._arguments import name_of

from .offload import has_weights

# Ends of the names, which may begin with a stage's.
_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "min_eos_p", "_tokens", "_length", "num_beams", "penalty")

# Of token ids. Stock adds its offset, and cannot look narrower integers up; to bools it can.
_ID_DTYPES = (torch.int64, torch.int32, torch.bool)

# What Bark passes to each stage, or the stage to `GenerationMixin.generate`: a second value is a TypeError there.
_SET_BY_BARK = {
    "semantic": {
        "input_ids",
        "semantic_generation_config",
        "history_prompt",
        "inputs",
        "inputs_embeds",
        "logits_processor",
    },
    "coarse": {
        "semantic_output",
        "semantic_generation_config",
        "coarse_generation_config",
        "history_prompt",
        "codebook_size",
        "return_output_lengths",
        "inputs",
        "logits_processor",
        "max_new_tokens",
    },
    "fine": {
        "coarse_output",
        "semantic_generation_config",
        "coarse_generation_config",
        "fine_generation_config",
        "history_prompt",
        "codebook_size",
    },
}
_INSTEAD = {"max_new_tokens": "; pass semantic_max_new_tokens= to limit the length"}


def check_arguments(stage: str, arguments: Collection[str], allowed: Collection[str] = ()) -> None:
    """Raise `TypeError` for an argument of a stage, prefix removed, that Bark sets itself and is not in `allowed`."""
    for name in sorted(_SET_BY_BARK[stage] & set(arguments) - set(allowed)):
        raise TypeError(
            f"BarkModel.generate() got multiple values for keyword argument {name!r}: Bark sets it itself for the "
            f"{stage} stage{_INSTEAD.get(name, '')}"
        )


def check_processors(processors: Any) -> None:
    """Raise `TypeError` unless these are objects that Transformers can call with ids and scores; None is none."""
    if not isinstance(processors, (list, tuple, type(None))):
        raise TypeError(f"logits_processor: expected a list of processors, got {name_of(processors)}")
    for processor in processors or ():
        if not callable(processor) or len(inspect.signature(processor.__call__).parameters) > 2:
            got = f"{name_of(processor)}{inspect.signature(processor) if callable(processor) else ''}"
            raise TypeError(f"logits_processor: expected callables of (input_ids, scores), got {got}")


def check_texts(semantic: Any, config: Any, input_ids: Any, attention_mask: Any) -> int:
    """Raise `TypeError` or `ValueError` unless these are padded texts that the semantic model can read.

    Parameters
    ----------
    semantic : BarkSemanticModel
    config : BarkSemanticGenerationConfig

    Returns the number of rows.
    """
    tokens = config.max_input_semantic_length
    _check_ids(input_ids, tokens)
    _check_mask(attention_mask, input_ids)
    _check_id_values(semantic, config.text_encoding_offset, input_ids[:, :tokens], attention_mask)
    return input_ids.shape[0]


def _check_ids(input_ids: Any, tokens: int) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in _ID_DTYPES:
        got = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids: expected an int64 or int32 tensor [batch, {tokens}], got {got}")
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < tokens:
        raise ValueError(
            f"input_ids: expected [batch, {tokens}] of padded texts (processor(text, max_length={tokens})), "
            f"got {list(input_ids.shape)}"
        )


def _check_mask(attention_mask: Any, input_ids: Tensor) -> None:
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.dtype == torch.bool:
        got = "torch.bool" if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise TypeError(f"attention_mask: expected a tensor of the numbers 0 and 1, got {got}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected the shape of input_ids, {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    tokens = attention_mask.sum(1)
    if bool((tokens == 0).any()):
        empty = (tokens == 0).nonzero().flatten().tolist()
        raise ValueError(f"input_ids: expected at least one text token in every row, got an empty text in row {empty}")


def _check_id_values(semantic: Any, offset: int, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """A padding id is never looked up, so it may be any number where the mask says that it is one."""
    count = getattr(semantic.get_input_embeddings(), "num_embeddings", None)
    if count is None:
        return
    outside = (input_ids < -offset) | (input_ids >= count - offset)
    if attention_mask is not None:
        outside &= (attention_mask[:, : input_ids.shape[1]] == 1).to(outside.device)
    if bool(outside.any()):
        got = input_ids[outside][0].item()
        raise ValueError(
            f"input_ids: expected ids from {-offset} to {count - offset - 1}, got {got}: is the processor this model's?"
        )


def check_not_meta(module: Any) -> None:
    """Raise `ValueError` for a module without weights."""
    if not has_weights(module):
        raise ValueError("expected a model with weights, got parameters on the meta device; load or move it first")


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a number of a generation, of all stages or one, that is given as a string."""
    for name, value in arguments.items():
        if isinstance(value, (str, bytes)) and name.endswith(_NUMBERS):
            raise TypeError(f"{name}: expected a number, got {value!r}")


def tokens_of_cut_text(input_ids: Tensor, attention_mask: Tensor | None, max_tokens: int) -> int | None:
    """Tokens of the longest text, where Bark will not read all of one; None where it will."""
    if attention_mask is None:
        return input_ids.shape[1] if input_ids.shape[1] > max_tokens else None
    cut = bool(attention_mask[:, max_tokens:].any())
    return int(attention_mask.sum(1).max()) if cut else None
