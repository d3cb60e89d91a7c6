"""Steps that several slots of a cache share; on a device with graphs, each is one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bark_accel.decoding.graph_capture import Capturer
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

# Sets of slots whose masks are kept on the device.
_MASKS = 256


class SharedSteps:
    """One model over the slots of a cache: some feed a token, the others stand idle.

    A graph replays kernels on fixed addresses: there is one for each power of two of slots, which reads ids and lengths
    where they are put on the device before each step. Nothing waits for the device, but for a set of slots that is new.

    Parameters
    ----------
    cache : KVCache
        Of all slots. Its `length` counts the entries of each, on the device.
    capturer : Capturer, optional
        Where there is none, or it fails, steps run kernel by kernel.
    """

    def __init__(self, model: CausalModel, cache: KVCache, capturer: Capturer | None):
        self._model, self._cache, self._capturer = model, cache, capturer
        self._slots, device = cache.keys.shape[1], cache.keys.device
        with torch.inference_mode(False):
            self._ids = torch.zeros(self._slots, 1, dtype=torch.int64, device=device)
            self._lengths = torch.zeros(self._slots, dtype=torch.int64, device=device)
        self._masks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._replays: dict[tuple[int, int, int], tuple[Callable[[], None], Tensor]] = {}

    def scores(self, slots: Sequence[int], ids: Tensor, rows: slice) -> Tensor:
        """Feed ids [N, 1] of N slots; scores [N, rows] float32 of what follows, valid up to the next step.

        Counts the new entries on the device; the caller does on the host.
        """
        places, busy = self._places(tuple(slots))
        self._ids.index_copy_(0, places, ids.to(self._ids.device))
        self._lengths.copy_(torch.where(busy, self._cache.length, -1))
        logits = self._run(self._count(max(slots) + 1), rows)
        self._cache.length.add_(busy)
        are_first = list(slots) == list(range(len(slots)))
        return logits[: len(slots)] if are_first else logits.index_select(0, places)

    def _places(self, slots: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Indices of slots, and which of all are among them, on the device."""
        if slots not in self._masks:
            if len(self._masks) == _MASKS:
                self._masks.clear()
            busy = [slot in slots for slot in range(self._slots)]
            device = self._ids.device
            self._masks[slots] = (
                torch.tensor(slots, dtype=torch.int64, device=device),
                torch.tensor(busy, dtype=torch.bool, device=device),
            )
        return self._masks[slots]

    def _count(self, least: int) -> int:
        """Slots that a step looks at: as few as can be or, for graphs, a power of two of them."""
        return least if self._capturer is None else min(self._slots, 1 << (least - 1).bit_length())

    def _run(self, count: int, rows: slice) -> Tensor:
        """Scores [count, rows] of the first slots."""
        cache = self._cache
        part = KVCache(cache.keys[:, :count], cache.values[:, :count], self._lengths[:count])

        def step() -> Tensor:
            return self._model.step_logits(self._ids[:count], part, rows)[:, 0]

        key = count, rows.start, rows.stop
        if self._capturer is not None and key not in self._replays:
            self._capture(key, step, self._capturer)
        if self._capturer is None:
            return step()
        replay, logits = self._replays[key]
        replay()
        return logits

    def _capture(self, key: tuple[int, int, int], step: Callable[[], Tensor], capturer: Capturer) -> None:
        count, first, stop = key
        logits = torch.empty(count, stop - first, dtype=torch.float32, device=self._ids.device)

        def captured() -> None:
            logits.copy_(step())

        try:
            self._replays[key] = capturer.capture(captured, None), logits
        except RuntimeError as error:
            # The memory pool may be inconsistent.
            self._capturer = None
            self._replays.clear()
            warnings.warn(
                "bark_accel: a step of an engine could not be captured as a CUDA graph; its steps run kernel by "
                f"kernel, slower, with the same result. {type(error).__name__}: {error}",
                stacklevel=1,
            )
