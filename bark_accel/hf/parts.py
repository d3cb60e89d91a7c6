"""The modules that a module is made of, and whether they are what they were."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def parts_of(module: nn.Module) -> list[nn.Module]:
    """List a module and all in it, each once: `Module.modules()`, but in another order and sooner."""
    found, seen = [module], {module}
    for part in found:
        for child in part._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def kinds_of(parts: Iterable[nn.Module]) -> set[Any]:
    """Return the classes of modules; a parametrized one has its own and that of before."""
    kinds: set[Any] = set(map(type, parts))
    return kinds | {kind.__bases__[0] for kind in kinds if kind.__module__ == parametrize.__name__}


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a module and of all in it."""
    return [p for part in parts_of(module) for p in part._parameters.values() if p is not None]


def float_tensors_of(module: nn.Module) -> list[Tensor]:
    """List tensors of a module and of all in it: parameters, buffers, and what was set on them without being either."""
    found: list[Tensor] = []
    for part in parts_of(module):
        for values in (part._parameters.values(), part._buffers.values(), vars(part).values()):
            found += [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    return found


class ModuleState:
    """State of a module and of all in it at one time: what is set on them, their hooks, their classes' methods.

    Tensors are none of it, nor kept by it.
    """

    def __init__(self, module: Any):
        self._parts = parts_of(module)
        own = [vars(part) for part in self._parts]
        names = ("_modules", "_forward_hooks", "_forward_pre_hooks")
        self._dicts = [vars(module.config), *own, *(found[name] for found in own for name in names)]
        self._kinds = kinds_of(self._parts)
        self._values = self._now()

    def is_of(self, module: Any) -> bool:
        """Tell whether it is of this module, and nothing was replaced since then."""
        if module is not self._parts[0]:
            return False
        now = self._now()
        return len(now) == len(self._values) and all(map(is_, now, self._values))

    def _now(self) -> list[object]:
        of_kinds = [value for kind in self._kinds for value in (kind.forward, *vars(kind).values())]
        values = chain.from_iterable(map(dict.values, self._dicts))
        parts = (*map(type, self._parts), *map(vars, self._parts))
        return [nn.modules.module._has_any_global_hook(), *parts, *of_kinds, *values]
