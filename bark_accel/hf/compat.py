"""Which Transformers this package was tested with, and what it relies on in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import GenerationMixin
from transformers.models.bark import modeling_bark as hf

from bark_accel._caller import warn_caller

try:
    from transformers.initialization import no_init_weights
except ImportError:  # Transformers 4
    from transformers.modeling_utils import no_init_weights  # type: ignore[attr-defined, no-redef]

from .points import POINTS

__all__ = [
    "TESTED_TORCH",
    "TESTED_VERSIONS",
    "cache_argument",
    "check_signatures",
    "layer_norm_eps",
    "no_init_weights",
    "prepare_generation",
    "prompt_argument",
    "run_with_loop",
    "takes_return_dict",
    "warn_of_untested",
]

TESTED_VERSIONS = ("4.46.3", "4.49.0", "4.52.4", "4.57.6", "5.0.0", "5.17.0", "5.23.0", "5.24.0")
TESTED_TORCH = ("2.11.0", "2.13.0", "2.14.1", "2.15.0")


def check_signatures() -> None:
    """Raise unless this Transformers has the signatures that the patches were written for.

    Raises
    ------
    ImportError
        Names every difference, this version and the tested ones.
    """
    differences = _differences()
    if differences:
        raise ImportError(
            f"bark_accel was tested with Transformers {', '.join(TESTED_VERSIONS)} and cannot patch "
            f"{transformers.__version__}, where {'; '.join(differences)}. Install a tested version: "
            f"pip install transformers=={TESTED_VERSIONS[-1]}"
        )


@cache
def warn_of_untested() -> None:
    """Warn, once in a process, where Transformers or torch is newer (a minor version) than the newest tested one."""
    pairs = (("Transformers", transformers.__version__, TESTED_VERSIONS), ("torch", torch.__version__, TESTED_TORCH))
    newer = [f"{name} {got} (newest tested: {tested[-1]})" for name, got, tested in pairs if _is_newer(got, tested[-1])]
    if newer:
        warn_caller(
            f"bark_accel was not tested with {' and '.join(newer)}. `bark-accel check` tells whether its tokens are "
            "stock's there"
        )


def _is_newer(version: str, tested: str) -> bool:
    return Version(version).release[:2] > Version(tested).release[:2]


def _differences() -> list[str]:
    differences = []
    for point in POINTS.values():
        got = tuple(inspect.signature(getattr(point.kind, point.method)).parameters)
        if got != point.parameters:
            name = f"{point.kind.__name__}.{point.method}"
            differences.append(f"{name} takes ({', '.join(got)}), expected ({', '.join(point.parameters)})")
    if not (_takes_custom_loop() or _runs_its_own_loop()):
        differences.append("GenerationMixin.generate takes no callable custom_generate, nor calls self._sample")
    return differences


@cache
def _takes_custom_loop() -> bool:
    """Not so in Transformers 4.52, but in 4.57."""
    parameter = inspect.signature(GenerationMixin.generate).parameters.get("custom_generate")
    return parameter is not None and "Callable" in str(parameter.annotation)


@cache
def _runs_its_own_loop() -> bool:
    """Tell whether `generate` looks its token loop up on the instance, as it did before it took callables."""
    return "_sample" in inspect.unwrap(GenerationMixin.generate).__code__.co_names


@cache
def takes_return_dict() -> bool:
    """Tell whether Bark's stages unpack the tokens of a generation with `return_dict_in_generate=True`.

    Before Transformers 5.0 they fail.
    """
    return "return_dict_in_generate" in inspect.unwrap(hf.BarkSemanticModel.generate).__code__.co_consts


def prompt_argument(module: Any) -> str:
    """The name under which the model takes embeddings; older versions of Transformers miss an s."""
    return "inputs_embeds" if "inputs_embeds" in inspect.signature(type(module).forward).parameters else "input_embeds"


@cache
def cache_argument() -> str:
    """The name under which causal models take their key-value cache and give it back: `cache` since 5.24."""
    return "cache" if "cache" in inspect.signature(hf.BarkCausalModel.forward).parameters else "past_key_values"


def layer_norm_eps(module: nn.Module) -> float | None:
    """The eps of a LayerNorm, None for any other class; before 4.57 the causal models have one of Transformers' own,
    of a fixed eps."""
    if type(module) is nn.LayerNorm:
        return module.eps
    return 1e-5 if type(module) is getattr(hf, "BarkLayerNorm", None) else None


# The loops of `GenerationMixin` before it took callables, one for each way to generate.
_LOOPS = (
    "_sample",
    "_beam_search",
    "_group_beam_search",
    "_constrained_beam_search",
    "_contrastive_search",
    "_assisted_decoding",
    "_dola_decoding",
)


def run_with_loop(generate: Callable, module: Any, loop: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a `generate` of the module's class with `loop` where Transformers' own token loop would run.

    Parameters
    ----------
    generate : callable (module, ...)
        `GenerationMixin.generate`, or one that calls it.
    loop : callable (model, input_ids, ..., **prepared)
        Called with what would reach `GenerationMixin._sample`, or the loop of another way to generate.
    """
    if _takes_custom_loop() and kwargs.get("tokenizer") is None:  # beside a callable, it loses the tokenizer
        with _without_static_cache(module):
            return generate(module, *args, **{**kwargs, "custom_generate": loop})
    # A throw-away object that shares everything with the module but the loops.
    view = copy.copy(module)
    view.__class__ = type(type(module).__name__, (type(module),), dict.fromkeys(_LOOPS, _own_loop))
    vars(view).update(_own_loop=partial(loop, module))
    return generate(view, *args, **kwargs)


@contextmanager
def _without_static_cache(module: Any) -> Iterator[None]:
    """Keep Transformers' static cache off a module: it makes one before its loop, and trips over one never filled."""
    kept = vars(module).pop("_cache", None)
    try:
        yield
    finally:
        vars(module).pop("_cache", None)
        if kept is not None:
            module._cache = kept


def _own_loop(view: Any, *args: Any, **prepared: Any) -> Any:
    return view._own_loop(*args, **prepared)


class _Captured(Exception):
    """Carries what `GenerationMixin.generate` prepared out of it, before its loop would start."""

    def __init__(self, prepared: dict[str, Any]):
        self.prepared = prepared


def prepare_generation(module: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Let Transformers resolve and validate the arguments of a generation, and stop it where its loop would start.

    Everything that decides a generation (config priority, defaults, checks, processors, criteria) stays
    Transformers' own, whatever the version. Nothing is computed and no random number is drawn.

    Returns
    -------
    dict
        `input_ids`, `logits_processor`, `stopping_criteria`, `generation_config` and the model's kwargs, as they
        would reach `GenerationMixin._sample`.
    """

    def capture(model: Any, input_ids: Any = None, *beams: Any, **prepared: Any) -> None:
        raise _Captured({"input_ids": input_ids, **prepared})

    try:
        run_with_loop(GenerationMixin.generate, module, capture, *args, **kwargs)
    except _Captured as captured:
        return captured.prepared
    raise AssertionError("GenerationMixin.generate returned without calling its loop")
