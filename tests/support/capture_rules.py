"""What a CUDA graph may not hold, told from the operations of torch that are dispatched while it is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their result, or its shape, has to be known to the host.
_WAIT = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "bincount"}


@contextmanager
def capture_rules(device: torch.device) -> Iterator[None]:
    """Raise `AssertionError` inside the `with` block for what a capture on a GPU refuses or gets wrong.

    A look at data, a copy between devices (tensors of `device` stand for those on the GPU), a tensor of Python's
    numbers, and random numbers of a generator that the graph does not know.
    """
    with _Made(), _Dispatched(device):
        yield


class _Made(TorchFunctionMode):
    """Tensors of Python's numbers are copied to their device out of sight of the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func.__name__} copies from the host"
        return func(*args, **(kwargs or {}))


class _Dispatched(TorchDispatchMode):
    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        assert name not in _WAIT, f"{name} waits for the device"
        assert torch.Tag.nondeterministic_seeded not in func.tags or _draws_nothing(name, args, kwargs), f"{name} draws"
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        others = [t for t in (*given, *made) if t.device != self._device and t.dim() > 0]
        assert not others, f"{name} has to do with {others[0].device}"
        return result


def _draws_nothing(name: str, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation that may drop out some of its numbers drops none."""
    return "attention" in name or name.startswith(("lstm", "_cudnn_rnn", "mkldnn_rnn"))
