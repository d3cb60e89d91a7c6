"""Interface of the two run-ahead decoders: speculation (CPU) and CUDA graphs (GPU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bark_accel.transformer.kv_cache import KVCache

from .sampling import Sampler, TokenRange


class TokenSource(Protocol):
    """A source of next tokens for one generation.

    Must return the same tokens, and leave the random generator in the same state, as step-by-step decoding.
    """

    @property
    def ahead(self) -> bool:
        """Tell whether the next token needs no more of the model."""
        ...

    def forget(self, cache: KVCache) -> None:
        """Drop what is ahead, as criteria have ended the text; the cache is then as a step leaves it."""
        ...

    def next_token(
        self,
        last: Tensor,
        cache: KVCache,
        sampler: Sampler,
        allowed: Callable[[int], TokenRange],
        limit: int,
    ) -> Tensor:
        """The token [B] int64 that follows.

        Parameters
        ----------
        last : Tensor [B] int64
            The token before, on the host or the device, which is not in the cache yet.
        allowed : callable
            The ids that the i-th token from now on may take.
        limit : int
            Tokens that will be asked for at most, this one included.
        """
        ...
