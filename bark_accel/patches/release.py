"""Implements `release_originals=True`: frees the transformers' original parameters. Irreversible."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import nn

from bark_accel.transformer.precision import compact

from .stage_patch import StagePatch

_WHAT = "release_originals=True gave up this module's own weights"


def check_released(module: nn.Module) -> None:
    """Raise `ValueError` for a module whose weights were given up."""
    if is_released(module):
        raise ValueError(f"{type(module).__name__}: expected a model that has its weights, but {_WHAT}; load it again")


def is_released(module: nn.Module) -> bool:
    return any(p.numel() == 0 for p in module.parameters())


def release(patches: list[StagePatch]) -> None:
    """Keep what the patches' generations need, in the precision that was asked for, and empty the modules.

    All of them are converted before the first one is emptied.
    """
    with torch.inference_mode(False), torch.no_grad():
        kept = [compact(patch.weights(), patch.settings.precision) for patch in patches]
        for patch, weights in zip(patches, kept, strict=True):
            patch.released = weights
            _empty(patch.module)


def _empty(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.new_empty(0), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.new_empty(0))  # the causal masks, a MiB a layer
    module.register_state_dict_pre_hook(_refuse_state_dict)
    module.register_load_state_dict_pre_hook(_refuse_state_dict)
    module.register_forward_pre_hook(_refuse_forward)


def _refuse_state_dict(module: nn.Module, *args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(f"{type(module).__name__}: no state dict can be saved or loaded: {_WHAT}; load the model again")


def _refuse_forward(module: nn.Module, *args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(f"{type(module).__name__}: Transformers' own code cannot run: {_WHAT}; load the model again")
