"""Checks of what a caller passes, made before any work is done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Ends of the names, which may begin with a stage's.
_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "min_eos_p", "_tokens", "_length", "num_beams", "penalty")
_PRESET_KEYS = ("semantic_prompt", "coarse_prompt", "fine_prompt")

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


def check_input_ids(input_ids: Any, attention_mask: Any, max_tokens: int) -> int:
    """Raise `TypeError` or `ValueError` unless this is a padded batch of texts.

    Returns the number of rows.
    """
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        got = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids: expected an integer tensor [batch, {max_tokens}], got {got}")
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < max_tokens:
        raise ValueError(
            f"input_ids: expected [batch, {max_tokens}] of padded texts (processor(text, max_length={max_tokens})), "
            f"got {list(input_ids.shape)}"
        )
    rows = input_ids.shape[0]
    if attention_mask is None:
        return rows
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask: expected a tensor, got {type(attention_mask).__name__}")
    if tuple(attention_mask.shape) != tuple(input_ids.shape):
        raise ValueError(
            f"attention_mask: expected the shape of input_ids, {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    tokens = attention_mask.sum(1)
    if bool((tokens == 0).any()):
        empty = (tokens == 0).nonzero().flatten().tolist()
        raise ValueError(f"input_ids: expected at least one text token in every row, got an empty text in row {empty}")
    return rows


def check_not_meta(module: Any) -> None:
    """Raise `ValueError` for a module without weights."""
    if any(parameter.is_meta for parameter in module.parameters()):
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


def by_row(history: Any) -> bool:
    """Tell whether `history_prompt` holds a voice preset (or None) for each row."""
    return isinstance(history, (list, tuple))


def read_histories(
    history: Any, key: str, batch_size: int, *, codebooks: int, vocab_size: int
) -> Tensor | list[Tensor | None] | None:
    """Call `read_history` for one voice preset, or for each of a list of `batch_size`, some of which may be None."""
    if not by_row(history):
        return read_history(history, key, codebooks=codebooks, vocab_size=vocab_size)
    if len(history) != batch_size:
        raise ValueError(
            f"history_prompt: expected one voice preset, or a list with one (or None) for each of {batch_size} rows, "
            f"got a list of {len(history)}"
        )
    return [
        read_history(p, key, codebooks=codebooks, vocab_size=vocab_size, name=f"history_prompt[{i}]")
        for i, p in enumerate(history)
    ]


def read_history(
    history: Any, key: str, *, codebooks: int, vocab_size: int, name: str = "history_prompt"
) -> Tensor | None:
    """One part of a voice preset as an int64 tensor, checked.

    Parameters
    ----------
    history : mapping or None
        A voice preset: arrays or tensors of any integer dtype (the preset `announcer` of suno's is uint16).
    key : {"semantic_prompt", "coarse_prompt", "fine_prompt"}
    codebooks : int
        Rows of a [codebooks, T] matrix, 0 for a [T] vector.
    vocab_size : int
        Exclusive upper bound of the values.
    name : str
        Of the voice preset, for errors.

    Raises
    ------
    TypeError, ValueError
        Name the part, what was expected and what came.
    """
    if history is None:
        return None
    if isinstance(history, str):
        raise TypeError(
            f"{name}: expected a mapping with {key!r}, got str {history!r}; the processor knows voices by name: "
            f"processor(text, voice_preset={history!r}), or in a pipeline's call "
            f"preprocess_params={{'voice_preset': {history!r}}}"
        )
    if not isinstance(history, Mapping):
        raise TypeError(f"{name}: expected a mapping with {key!r}, got {type(history).__name__}")
    if key not in history:
        raise ValueError(f"{name}: expected the keys {', '.join(_PRESET_KEYS)}, got {', '.join(map(str, history))}")
    tensor = _as_int64(f"{name}[{key!r}]", history[key])
    expected = f"[{codebooks}, T]" if codebooks else "[T]"
    if tensor.ndim != (2 if codebooks else 1) or (codebooks and tensor.shape[0] != codebooks):
        raise ValueError(f"{name}[{key!r}]: expected shape {expected}, got {list(tensor.shape)}")
    if tensor.numel() and not (int(tensor.min()) >= 0 and int(tensor.max()) < vocab_size):
        low, high = int(tensor.min()), int(tensor.max())
        raise ValueError(f"{name}[{key!r}]: expected codes in 0..{vocab_size - 1}, got {low}..{high}")
    return tensor


def _as_int64(name: str, value: Any) -> Tensor:
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(f"{name}: expected an array or tensor, got {type(value).__name__}")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got {value.dtype}")
        return torch.from_numpy(value.astype(np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    return value.to(torch.int64)


def on_device(device: torch.device, value: Any) -> Any:
    if isinstance(value, list):
        return [on_device(device, part) for part in value]
    return None if value is None else value.to(device)


def semantic_ids(config: Any) -> int:
    """Exclusive bound of the ids in a semantic history: a preset made of generated tokens may end in padding.

    Raises `ValueError` where the config has no one end token, which is what Bark pads with.
    """
    if not isinstance(config.semantic_pad_token, Integral):
        raise ValueError(
            "eos_token_id of the semantic generation config: expected one id, which Bark also pads with, got "
            f"{config.semantic_pad_token!r}"
        )
    return max(config.semantic_vocab_size, config.semantic_pad_token + 1)


def preset_on(module: Any, **parts: Any) -> dict[str, Tensor] | None:
    """A voice preset for Transformers' own method, on the module's device."""
    return {key: part.to(module.device) for key, part in parts.items() if part is not None} or None
