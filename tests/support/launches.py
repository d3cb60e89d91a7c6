"""Counts what would be kernels on a GPU, on the CPU: torch's operations that are no views and do not just allocate."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_FREE = ("_unsafe_view", "empty", "empty_strided", "empty_like", "new_empty", "detach", "_reshape_alias")


class Launches(TorchDispatchMode):
    """`counts` of each operation's name, of those inside the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and name not in _FREE and not self._converts_nothing(func, args, kwargs):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _converts_nothing(func: Any, args: Any, kwargs: Any) -> bool:
        return func._schema.name == "aten::_to_copy" and (kwargs or {}).get("dtype", args[0].dtype) == args[0].dtype
