"""Arguments of `accelerate_bark` with which tokens are no longer stock's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Approximations:
    """Arguments of `accelerate_bark`, by their names there; none is approximate by default."""

    weights: str = "same"
    kv_cache_dtype: str = "auto"
    fit_windows: bool = False
    long_coarse_windows: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `accelerate_bark`."""
        return asdict(self)


EXACT = Approximations()
