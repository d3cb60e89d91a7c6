"""suno's own `.pt` checkpoints as the sub-models of Transformers' Bark. Nothing in a file is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.bark import modeling_bark as hf
from transformers.models.bark.configuration_bark import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig

from .compat import no_init_weights

_CLASSES: dict[str, tuple[Any, Any]] = {
    "text": (BarkSemanticConfig, hf.BarkSemanticModel),
    "coarse": (BarkCoarseConfig, hf.BarkCoarseModel),
    "fine": (BarkFineConfig, hf.BarkFineModel),
}
# suno's names of sizes, and Transformers'.
_SIZES = {"n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size"}
_SAME = ("block_size", "bias", "dropout", "input_vocab_size", "output_vocab_size", "n_codes_total", "n_codes_given")
# Parts of parameters' names, in the order in which they are replaced.
_NAMES = {
    "_orig_mod.": "",
    "transformer.": "",
    "wtes.": "input_embeds_layers.",
    "wte.": "input_embeds_layer.",
    "wpe.": "position_embeds_layer.",
    "h.": "layers.",
    "ln_f.": "layernorm_final.",
}
_NAMES_IN_LAYERS = {
    ".ln_1.": ".layernorm_1.",
    ".ln_2.": ".layernorm_2.",
    ".attn.c_attn.": ".attn.att_proj.",
    ".attn.c_proj.": ".attn.out_proj.",
    ".mlp.c_fc.": ".mlp.in_proj.",
    ".mlp.c_proj.": ".mlp.out_proj.",
}


def load_suno_stage(path: Path, stage: str) -> torch.nn.Module:
    """Read one stage, in eval mode on the CPU.

    Parameters
    ----------
    path : Path
        A file as suno's package reads it: a dict with `model` (a state dict) and `model_args`.
    stage : {"text", "coarse", "fine"}

    Returns
    -------
    BarkSemanticModel, BarkCoarseModel or BarkFineModel

    Raises
    ------
    ValueError
        Another kind of file, or of another stage: names the file, what was expected and what came.
    """
    checkpoint = _read(path)
    arguments, weights = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(arguments, Mapping) or not isinstance(weights, Mapping):
        got = ", ".join(map(str, checkpoint)) or "none"
        raise ValueError(f"{path}: expected the keys model and model_args of suno's checkpoints, got {got}")
    config_class, model_class = _CLASSES[stage]
    with no_init_weights():
        model = model_class(config_class(**_sizes(path, arguments)))
    _load(path, model, {_renamed(name): tensor for name, tensor in weights.items()})
    return model.eval()


def _number(dtype: np.dtype, content: bytes) -> Any:
    """Stands in for numpy's unpickler of scalars, which suno's files need: numbers only."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"expected a number, got a scalar of {dtype}")
    return np.frombuffer(content, dtype, 1)[0]


_NUMBERS: list[Any] = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_NUMBERS += [np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1] if isinstance(error, EOFError) else str(error)
        raise ValueError(
            f"{path}: expected a checkpoint of tensors and numbers (torch.load with weights_only=True), got another "
            f"kind of file or a damaged one: {reason[:300]}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: expected a dict with model and model_args, got {type(checkpoint).__name__}")
    return checkpoint


def _sizes(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' names of the sizes; where one vocabulary is given, it is that of ids and of logits."""
    given = dict(arguments)
    if "vocab_size" in given:
        both = given.pop("vocab_size")
        given = {"input_vocab_size": both, "output_vocab_size": both, **given}
    unknown = sorted(given.keys() - _SIZES.keys() - set(_SAME))
    if unknown or not given.keys() >= _SIZES.keys():
        known = ", ".join((*_SIZES, *_SAME, "vocab_size"))
        raise ValueError(f"{path}: expected model_args among {known}, got {', '.join(map(str, arguments))}")
    return {_SIZES.get(name, name): value for name, value in given.items()}


def _renamed(name: str) -> str:
    """A parameter's name in Transformers' Bark."""
    for old, new in _NAMES.items():
        name = new + name.removeprefix(old) if name.startswith(old) else name
    if name.startswith("layers."):
        for old, new in _NAMES_IN_LAYERS.items():
            name = name.replace(old, new)
    return name


def _load(path: Path, model: Any, weights: dict[str, Tensor]) -> None:
    """Give the model its weights; whatever has no home, and whatever is missing, is an error."""
    masks = {name for name in {*weights, *model.state_dict()} if name.endswith(".attn.bias")}
    weights = {name: tensor for name, tensor in weights.items() if name not in masks}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in masks}
    got = {name: tensor.shape for name, tensor in weights.items()}
    if got != expected:
        wrong = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
        name = wrong[0]
        sizes = [list(shapes[name]) if name in shapes else "none" for shapes in (expected, got)]
        raise ValueError(
            f"{path}: expected the weights of a {type(model).__name__}; {len(wrong)} do not fit, "
            f"{name} first: expected shape {sizes[0]}, got {sizes[1]}"
        )
    # Tables and heads that are one tensor in the file stay one.
    model.load_state_dict(weights, strict=False, assign=True)
