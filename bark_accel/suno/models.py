"""The stages that are loaded, and where each computes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bark_accel._forked import watch
from bark_accel.hf.configs import sample_rate
from bark_accel.hf.inputs import check_not_meta
from bark_accel.patches.coarse import CoarsePatch
from bark_accel.patches.fine import CodecPatch, FinePatch
from bark_accel.patches.semantic import SemanticPatch
from bark_accel.patches.stage_patch import Settings, StagePatch
from bark_accel.report import AccelerationError, Fallback, FallbackLog
from bark_accel.streaming.owner import owner_of
from bark_accel.transformer.precision import WEIGHTS

from .sources import PARTS, Sources, Specs

_PATCHES: dict[str, type[StagePatch]] = {"text": SemanticPatch, "coarse": CoarsePatch, "fine": FinePatch}
_PATCHES["codec"] = CodecPatch


@dataclass
class Stage:
    """One loaded stage: computes on `device`, and waits on the CPU if it is `offloaded`."""

    patch: Any
    specs: Specs
    device: torch.device
    offloaded: bool = False
    tokenizer: Any = None
    processor: Any = None

    @contextmanager
    def on_duty(self) -> Iterator[Any]:
        """Lend the patch, its module on the device; raises `AccelerationError` for a module that cannot run."""
        module = self.patch.module
        if self.offloaded:
            module.to(self.device)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield self.patch
        except Fallback as fallback:
            raise AccelerationError(fallback.reason) from None
        finally:
            if self.offloaded:
                module.to("cpu")


LOADED: dict[str, Stage] = {}
"""By suno's names: text, coarse, fine, codec."""


def stage_of(model_type: str) -> Stage:
    """A loaded stage; where it is not, all that are missing are loaded."""
    if model_type not in LOADED:
        preload_models()
    return LOADED[model_type]


def use_model(model: Any, processor: Any) -> int:
    """Speak with a model of your own from now on.

    Parameters
    ----------
    model : BarkModel
        Accelerated, with whatever options of `accelerate_bark`, or not; it stays where it is, and as it is.
    processor : BarkProcessor
        Of the same checkpoint: its tokenizer and its voices.

    Returns
    -------
    int
        Samples per second; `SAMPLE_RATE` is that of suno's checkpoints.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    """
    if not all(hasattr(model, part) for part in PARTS.values()):
        raise TypeError(f"model: expected a transformers.BarkModel, got {type(model).__name__}")
    if not hasattr(processor, "tokenizer"):
        raise TypeError(f"processor: expected a BarkProcessor, got {type(processor).__name__}")
    check_not_meta(model)
    specs = Specs.of_model(model)
    stages = {key: Stage(_patch_of(model, key), specs, model.device) for key in PARTS}
    stages["text"].tokenizer, stages["text"].processor = processor.tokenizer, processor
    LOADED.update(stages)
    return sample_rate(model)


def preload_models(
    text_use_gpu: bool = True,
    text_use_small: bool = False,
    coarse_use_gpu: bool = True,
    coarse_use_small: bool = False,
    fine_use_gpu: bool = True,
    fine_use_small: bool = False,
    codec_use_gpu: bool = True,
    force_reload: bool = False,
    *,
    weights: str | None = None,
) -> None:
    """Load what is not loaded yet of the four stages: all of it or, where a part cannot be had, none.

    Parameters
    ----------
    text_use_gpu, coarse_use_gpu, fine_use_gpu, codec_use_gpu : bool
        Compute that stage on a GPU where there is one.
    text_use_small, coarse_use_small, fine_use_small : bool
        Take the small model for that stage; SUNO_USE_SMALL_MODELS=True in the environment does for all.
    force_reload : bool
        Load what is loaded as well.
    weights : {"same", "float16", "bfloat16", "int8", "w8a8"}, optional
        See `accelerate_bark`; suno's function has no such argument. None: bfloat16 on a GPU that has it, where suno's
        code computes in it too, else float32.

    Raises
    ------
    FileNotFoundError
        The weights of a stage are neither in suno's cache folder nor to be had from the Hub.
    ValueError
        A checkpoint of another kind, or unknown `weights`.
    """
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights: expected None or one of {', '.join(map(repr, WEIGHTS))}, got {weights!r}")
    sources = Sources()
    gpu = {"text": text_use_gpu, "coarse": coarse_use_gpu, "fine": fine_use_gpu, "codec": codec_use_gpu}
    small = {"text": text_use_small, "coarse": coarse_use_small, "fine": fine_use_small, "codec": False}
    missing = [key for key in PARTS if force_reload or key not in LOADED]
    LOADED.update({key: _loaded(sources, key, gpu[key], small[key], weights) for key in missing})


def load_model(
    use_gpu: bool = True, use_small: bool = False, force_reload: bool = False, model_type: str = "text"
) -> Any:
    """Load one stage if it is not loaded yet.

    Returns
    -------
    BarkCoarseModel, BarkFineModel, or for `"text"` a dict with `model` (a BarkSemanticModel) and `tokenizer`

    Raises
    ------
    ValueError
        Another `model_type` than `"text"`, `"coarse"` and `"fine"`, or a checkpoint of another kind.
    FileNotFoundError
        See `preload_models`.
    """
    if model_type not in ("text", "coarse", "fine"):
        raise ValueError(f"model_type: expected 'text', 'coarse' or 'fine', got {model_type!r}")
    module = _load_one(model_type, use_gpu, use_small, force_reload)
    return {"model": module, "tokenizer": LOADED["text"].tokenizer} if model_type == "text" else module


def load_codec_model(use_gpu: bool = True, force_reload: bool = False) -> Any:
    """Load the codec, an `EncodecModel` of Transformers, if it is not loaded yet; raises as `preload_models` does."""
    return _load_one("codec", use_gpu, False, force_reload)


def clean_models(model_key: str | None = None) -> None:
    """Forget one of the loaded stages (text, coarse, fine, codec), or all of them."""
    for key in [model_key] if model_key is not None else list(LOADED):
        LOADED.pop(key, None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_one(key: str, use_gpu: bool, use_small: bool, force_reload: bool) -> Any:
    if force_reload or key not in LOADED:
        LOADED[key] = _loaded(Sources(), key, use_gpu, use_small, None)
    return LOADED[key].patch.module


def _loaded(sources: Sources, key: str, use_gpu: bool, use_small: bool, weights: str | None) -> Stage:
    found = sources.find(key, use_small or _switched_on("SUNO_USE_SMALL_MODELS"))
    device = _device(use_gpu, with_mps=key != "codec")
    offloaded = _switched_on("SUNO_OFFLOAD_CPU") and device.type != "cpu"
    if not offloaded:
        found.module.to(device)
    patch = _PATCHES[key](found.module, _settings(weights or _precision(device)))
    return Stage(patch, found.specs, device, offloaded, found.tokenizer, found.processor)


def _switched_on(name: str) -> bool:
    """Read a switch of the environment as suno's code does."""
    return os.environ.get(name, "").lower() in ("true", "1", "t")


def _device(use_gpu: bool, with_mps: bool) -> torch.device:
    if use_gpu and torch.cuda.device_count() > 0:
        return torch.device("cuda")
    if use_gpu and with_mps and _switched_on("SUNO_ENABLE_MPS") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _precision(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "same"


def _settings(weights: str) -> Settings:
    watch()
    return Settings("auto", FallbackLog(strict=True), weights)


def _patch_of(model: Any, key: str) -> StagePatch:
    """The patch that an accelerated model has, or one of its own; only the codec's is made for every call."""
    part = getattr(model, PARTS[key])
    patch = None if key == "codec" else owner_of(part.generate, StagePatch)
    return patch or _PATCHES[key](part, _settings("same"))
