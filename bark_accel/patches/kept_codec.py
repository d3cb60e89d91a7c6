"""The codec as it was last read: its weights are folded anew only after a change."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from bark_accel.hf.codec import check_codec, codec_tensors, codec_weights
from bark_accel.hf.offload import is_offloaded
from bark_accel.hf.parts import ModuleState
from bark_accel.ops.cuda_streams import finish_stream
from bark_accel.ops.interface import CodecOps
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.codec_weights import CodecWeights
from bark_accel.transformer.dynamo import Compiler
from bark_accel.transformer.fingerprint import Fingerprint


class _Read(NamedTuple):
    """Weights, and what they were read from."""

    state: ModuleState
    fingerprint: Fingerprint
    weights: CodecWeights

    def fits(self, module: Any) -> bool:
        return self.state.is_of(module) and self.fingerprint.fits(codec_tensors(module))


class KeptCodec:
    """Keeps a codec's folded weights, and the stage on them, until the module that they were read from changes.

    Its `ModuleState` and the `Fingerprint` of its tensors, summed, tell. A copied or unpickled one starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: _Read | None = None
        self._made: tuple[CodecOps, CodecWeights, CodecStage] | None = None

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()  # type: ignore[misc]

    def weights(self, module: Any) -> CodecWeights:
        """The weights as `codec_weights` reads them; raises `Fallback` as it does."""
        if is_offloaded(module):
            self.clear()  # kept, copies would fill what offloading frees
            return codec_weights(module)
        # Without the lock, for it may wait for a device: others would have to wait as well.
        before = self._read
        if before is not None and before.fits(module):
            return before.weights
        with self._lock:
            if self._read is not None and self._read is not before and self._read.fits(module):
                return self._read.weights
            self._read = None
            check_codec(module)
            tensors = codec_tensors(module)
            if not _can_be_kept(tensors[0].device):
                return codec_weights(module)
            # Before they are read: what another thread writes meanwhile is seen by the next call.
            state, fingerprint = ModuleState(module), Fingerprint(tensors, summed=True)
            weights = codec_weights(module)
            finish_stream(tensors[0].device)
            self._read = _Read(state, fingerprint, weights)
            return weights

    def stage(self, weights: CodecWeights, ops: CodecOps, compiler: Compiler | None) -> CodecStage:
        """The stage on weights."""
        with self._lock:
            if self._made is None or self._made[0] is not ops or self._made[1] is not weights:
                self._made = ops, weights, CodecStage(weights, ops, compiler)
            return self._made[2]

    def held(self) -> tuple[CodecWeights, ...]:
        """The weights that are kept now."""
        with self._lock:
            return () if self._read is None else (self._read.weights,)

    def clear(self) -> tuple[CodecWeights, ...]:
        """Give them up; they are returned once more."""
        held = self.held()
        with self._lock:
            self._read = self._made = None
        return held


def _can_be_kept(device: torch.device) -> bool:
    """Tell whether weights that are folded now are those of later, not rounded by autocast or a `cached` block's."""
    return device.type != "meta" and not parametrize._cache_enabled and not torch.is_autocast_enabled(device.type)
