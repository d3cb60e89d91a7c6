"""Modules and tensors that would not compute what their class says are refused with `Fallback`.

Our stages read weights and never call the modules, so hooks, replaced layers and other dtypes would be passed over.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bark_accel.report import Fallback, FallbackKind

from .offload import only_moves_weights
from .parts import kinds_of, parts_of
from .points import SUBMODELS

_PATCHED_METHODS = {point.method for point in SUBMODELS.values()}
# What every module has of its own: no method of a class.
_STATE = frozenset(vars(nn.Module()))
# What optimum 1 puts in the place of an attention layer: the same weights and names, torch's attention.
BETTER_TRANSFORMER = "optimum.bettertransformer.models.decoder_models.BarkAttentionLayerBetterTransformer"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_modules(stage: str, module: nn.Module) -> None:
    """Refuse modules that would not compute what their class of Transformers or torch does."""
    if nn.modules.module._has_any_global_hook():
        raise Fallback(stage, FallbackKind.HOOKED_MODULE, "hooks for all modules of the process")
    parts = parts_of(module)
    for kind in kinds_of(parts):
        _check_class(stage, kind)
    # Names that are no method of a class: few parts have others.
    plain: dict[type, set[str]] = defaultdict(lambda: set(_STATE))
    for part in parts:
        kind, own = type(part), vars(part)
        new = own.keys() - plain[kind]
        set_on_it = [name for name in new if callable(getattr(kind, name, None))]
        if set_on_it or part.training or own["_forward_hooks"] or own["_forward_pre_hooks"] or "_hf_hook" in own:
            _check_part(stage, module, part, set_on_it)
        if new:
            plain[kind].update(new.difference(set_on_it))


def _check_part(stage: str, module: nn.Module, part: nn.Module, set_on_it: Sequence[str]) -> None:
    """Refuse a part that is in training, has hooks, or methods of its own among what was set on it."""
    own = vars(part)
    name = next(name for name, found in module.named_modules() if found is part)
    where = f"{name or 'the model'} ({type(part).__name__})"
    if part.training:
        raise Fallback(stage, FallbackKind.TRAINING, where)
    moved = only_moves_weights(part)
    if ("_hf_hook" in own and not moved) or own["_forward_hooks"] or own["_forward_pre_hooks"]:
        raise Fallback(stage, FallbackKind.HOOKED_MODULE, where)
    allowed = {*_PATCHED_METHODS, *(["forward"] if moved else [])}
    overridden = sorted(name for name in set_on_it if name not in allowed and not _is_class_own(part, name))
    if overridden:
        raise Fallback(stage, FallbackKind.HOOKED_MODULE, f"{where}: {overridden[0]} was set on the instance")


def _is_class_own(part: nn.Module, name: str) -> bool:
    """Tell whether what was set on an instance is its class's method: accelerate's hooks leave it when removed."""
    method = vars(part)[name]
    return getattr(method, "__self__", None) is part and getattr(method, "__func__", None) is getattr(type(part), name)


def _check_class(stage: str, kind: Any) -> None:
    """Refuse a class whose methods somebody replaced or overrode."""
    if issubclass(kind, torch.jit.ScriptModule):
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"a {kind.__name__}, compiled by torch.jit")
    libraries = ("torch", "transformers", *(["optimum"] if class_name(kind) == BETTER_TRANSFORMER else []))
    for name, found in (*vars(kind).items(), ("forward", kind.forward)):
        method = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
        homes = _homes(method) if inspect.isfunction(method) else []
        for home in homes:
            if home.partition(".")[0] not in libraries:
                detail = f"{kind.__name__}.{name} comes from {home}"
                raise Fallback(stage, FallbackKind.REPLACED_MODULE, detail)


def _homes(function: Any) -> list[str]:
    """Name the modules that a function says it is of and was made in: `functools.wraps` has it say another's."""
    said, made_in = function.__module__, function.__globals__.get("__name__")
    # The standard library's own decorators change nothing.
    is_own = made_in is not None and made_in.partition(".")[0] in sys.stdlib_module_names
    return [home for home in (said, None if is_own else made_in) if home is not None]


def check_tensors(stage: str, tensors: Iterable[Tensor]) -> None:
    """Refuse what is not all of one supported dtype on one device."""
    seen_dtypes, seen_devices = set(), set()
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ReplacedPart(stage, tensor, nn.Parameter)
        if tensor.is_floating_point():
            seen_dtypes.add(tensor.dtype)
        seen_devices.add(tensor.device)
    if len(seen_dtypes) != 1 or not seen_dtypes <= set(DTYPES):
        expected, got = ", ".join(map(str, DTYPES)), ", ".join(sorted(map(str, seen_dtypes)))
        raise Fallback(stage, FallbackKind.DTYPE, f"expected one of {expected}, got {got}")
    if len(seen_devices) != 1:
        got = ", ".join(sorted(map(str, seen_devices)))
        raise Fallback(stage, FallbackKind.DEVICE, f"expected one device, got {got}")


class ReplacedPart(Fallback):
    """A module or parameter of another class; `naming_parts` adds where it is."""

    def __init__(self, stage: str, part: Any, expected: type):
        detail = f"expected {class_name(expected)}, got {class_name(type(part))}{way_out(part)}"
        super().__init__(stage, FallbackKind.REPLACED_MODULE, detail)
        self.part = part


def class_name(kind: type) -> str:
    """Name a class in full: several libraries have a Linear."""
    return f"{kind.__module__}.{kind.__qualname__}"


def way_out(part: Any) -> str:
    """Say what to do about a part of another library."""
    where = class_name(type(part)).lower()
    if hasattr(part, "base_layer") or where.startswith("peft."):
        return "; merge LoRA layers first: merge_and_unload()"
    if any(word in where for word in ("quant", "torch.ao.", "torchao", "bitsandbytes", "8bit", "4bit", "gptq", "awq")):
        return "; load the model unquantised, weights='int8' of accelerate_bark makes it smaller"
    return ""


def naming_parts(read: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a reader whose last argument is the whole module."""

    @functools.wraps(read)
    def call(*args: Any) -> Any:
        try:
            return read(*args)
        except ReplacedPart as replaced:
            part, reason = replaced.part, replaced.reason
        places = (*args[-1].named_modules(), *args[-1].named_parameters())
        name = next((name for name, place in places if place is part and name), "the model")
        raise Fallback(reason.stage, reason.kind, f"{name}: {reason.detail}")

    return call


def exact(stage: str, module: Any, kind: type) -> Any:
    if type(module) is not kind:
        raise ReplacedPart(stage, module, kind)
    return module
