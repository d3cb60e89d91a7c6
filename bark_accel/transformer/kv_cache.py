"""A key/value cache of fixed capacity, and the pool that keeps it between calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bark_accel.ops import checks as op_checks
from bark_accel.ops.int8_entries import entry_size, to_entries, to_vectors
from bark_accel.ops.interface import StepCache

from .pages import ask_for_large_pages
from .spec import TransformerSpec

KV_CACHE_DTYPES = ("auto", "int8")


@dataclass
class KVCache:
    """Keys and values of every layer, [layers, B, H, capacity, D]; positions >= length are uninitialised.

    Of an int8 cache the entries are [..., D + 4]: numbers and their scale (`bark_accel.ops.int8_entries`).

    The length lives on the device (`length`, int64 [B]) for the ops and on the host (`position`) for the loops, whose
    rows all stand at one position.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    position: int = 0
    unchanged: int = 0
    """Entries before it are as they were when a `KVCopy` last read them."""

    @property
    def tensors(self) -> StepCache:
        """The cache as the ops take it."""
        return StepCache(self.keys, self.values, self.length)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @classmethod
    def empty(cls, spec: TransformerSpec, rows: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Make one of capacity `spec.block_size`, without entries."""
        shape = _shape(spec, rows, dtype)
        # Buffers born in inference mode could not be written outside of it by a later call.
        with torch.inference_mode(False):
            # Attention over the whole cache, on a GPU, multiplies what is not valid yet by zero: NaN would stay.
            make = torch.empty if device.type == "cpu" else torch.zeros
            keys, values = (make(shape, dtype=dtype, device=device) for _ in range(2))
            if device.type == "cpu" and rows > 1:  # a lone row's step spends a tenth of its time on the cache
                for tensor in (keys, values):
                    ask_for_large_pages(tensor)
            return cls(keys, values, torch.zeros(rows, dtype=torch.int64, device=device))

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value [B, T, H, D] of a layer behind what is there; the position stays.

        Returns keys and values [B, H, S, D] of all positions up to the new ones, as attention is to see them.
        """
        end, found = self.position + key.shape[1], []
        for entries, new in ((self.keys[layer], key), (self.values[layer], value)):
            entries[:, :, self.position : end] = to_entries(new, self.dtype).transpose(1, 2)
            found.append(to_vectors(entries[:, :, :end]))
        return found[0], found[1]

    def row(self, row: int) -> KVCache:
        """One row as an empty cache of its own, on the same memory."""
        part = slice(row, row + 1)
        cache = KVCache(self.keys[:, part], self.values[:, part], self.length[part])
        cache.truncate(0)
        _forget(cache.keys, cache.values)
        return cache

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on."""
        self.position = position
        self.unchanged = min(self.unchanged, position)
        self.length.fill_(position)

    def advance(self, tokens: int) -> None:
        """Count `tokens` entries that the ops have just written."""
        self.position += tokens
        self.length.add_(tokens)

    def drop_row(self, row: int) -> None:
        """Give up one row of the batch: the last one moves into its place."""
        last = self.keys.shape[1] - 1
        if row != last:
            for entries in (self.keys, self.values):
                entries[:, row, :, : self.position] = entries[:, last, :, : self.position]
            self.length[row] = self.length[last]
        self.keys, self.values, self.length = self.keys[:, :last], self.values[:, :last], self.length[:last]


@dataclass
class KVCachePool:
    """Keeps the largest idle buffer, so that windows and calls share one allocation.

    Two generations at once each get a buffer of their own. A copied or unpickled pool starts empty.
    """

    _idle: tuple[Tensor, Tensor, Tensor] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def nbytes(self) -> int:
        """Bytes held while no generation is running."""
        idle = self._idle
        return 0 if idle is None else sum(t.numel() * t.element_size() for t in idle)

    def clear(self) -> int:
        """Give the buffer up; the bytes of it."""
        with self._lock:
            freed, self._idle = self.nbytes, None
        return freed

    @contextmanager
    def borrow(
        self, spec: TransformerSpec, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> Iterator[KVCache]:
        """Lend an empty cache of capacity `spec.block_size` for `batch_size` rows.

        The same three tensors come back as long as nothing else is asked for: CUDA graphs rely on their addresses.
        """
        with self._lock:
            idle, self._idle = self._idle, None
        shape = _shape(spec, batch_size, dtype)
        if idle is None or not _fits(idle[0], shape, dtype, device):
            made = KVCache.empty(spec, batch_size, dtype, device)
            idle = made.keys, made.values, made.length
        keys, values, length = idle
        length.zero_()
        _forget(keys, values)
        try:
            yield KVCache(keys[:, :batch_size], values[:, :batch_size], length[:batch_size])
        finally:
            with self._lock:
                if self._idle is None or self._idle[0].numel() <= keys.numel():
                    self._idle = idle


def _shape(spec: TransformerSpec, rows: int, dtype: torch.dtype) -> tuple[int, ...]:
    return spec.num_layers, rows, spec.num_heads, spec.block_size, entry_size(spec.head_size, dtype)


def _forget(keys: Tensor, values: Tensor) -> None:
    """Clear what attention on a device looks at beyond the length, and multiplies by zero: NaN would stay."""
    if not op_checks.on_host(keys):
        keys.zero_()
        values.zero_()


def _fits(held: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    same_kind = held.dtype == dtype and held.device == device
    return same_kind and held.shape[1] >= shape[1] and held.shape[:1] + held.shape[2:] == shape[:1] + shape[2:]
