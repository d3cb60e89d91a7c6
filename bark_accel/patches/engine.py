"""`bark_accel.BarkEngine`: a `BarkModel` as the source of an engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from transformers import BarkModel

from bark_accel.decoding.cuda_graphs import graphs_are_on
from bark_accel.decoding.graph_capture import Capturer, make_capturer
from bark_accel.engine.engine import Engine
from bark_accel.engine.errors import NotShared
from bark_accel.engine.row import Plan
from bark_accel.hf.offload import keeps_elsewhere, takes_turns
from bark_accel.hf.points import submodels
from bark_accel.report import Fallback
from bark_accel.streaming.policies import Chunking
from bark_accel.streaming.progress import check_progress
from bark_accel.streaming.streamer import AudioStreamer
from bark_accel.transformer.causal import CausalModel

from .api import accelerate_bark
from .patched import model_patch
from .points import StagePatches
from .request import Request
from .row_plan import EngineModels, RowPlan

# More chunks than an utterance has: an engine waits for no listener.
_ANY_NUMBER = 2**31
_REFUSED = ("streamer", "generation_config", "return_output_lengths", "trim")


class BarkEngine(Engine):
    """Generates the utterances of many requests in one batch, each as it would be alone.

    Requests come and go at any time, from any thread; those that are there share every step of the two token stages.
    Voices, lengths, sampling options, policies and seeds are each request's own, and so is its audio: what
    `torch.manual_seed(seed)` and `model.generate` (or `stream`) give for it alone, to the bit on a CPU with the same
    number of threads.

    Parameters
    ----------
    model : BarkModel
        Accelerated, or it will be, with the default arguments. As long as the engine lives, its weights stay where and
        what they are; it may generate beside it.
    max_rows : int
        Requests that share a step, at least 1. Each has a key-value cache: 72 MiB with bark-small in float32, 192 MiB
        with bark.
    max_queued : int
        Requests that may wait for a row, at least 0.

    With `fit_windows=True` on a CPU, call `warmup` (or `stream_speed`) before: it measures the speed by which
    low-latency streams are planned. Else the first `submit` of one does, beside whatever runs.

    Attributes
    ----------
    max_rows, max_queued : int
        As given.
    cache_bytes : int
        Of the key-value caches of all rows.
    requests : int
        Those that are not done.
    closed : bool
        Takes no more requests: it was closed, or has failed, which is a bug.

    Raises
    ------
    TypeError, ValueError
        As `accelerate_bark`, for a number that is none or too small, and for a model that cannot run accelerated as it
        is.
    """

    def __init__(self, model: BarkModel, *, max_rows: int = 8, max_queued: int = 64):
        super().__init__(lambda: ModelSource(model), max_rows, max_queued)


class ModelSource:
    """See `bark_accel.engine.engine.Source`."""

    @torch.no_grad()
    def __init__(self, model: BarkModel):
        patch = model_patch(model) if isinstance(model, BarkModel) else None
        if isinstance(model, BarkModel):
            _check_stays(model)
        patch = model_patch(accelerate_bark(model)) if patch is None else patch
        assert patch is not None
        self._model, self._patch = model, patch
        self._found = _fingerprint(model)
        try:
            self._patches = StagePatches.of(model, patch.settings)
            self._models = EngineModels.of(self._patches)
        except Fallback as fallback:
            raise NotShared(
                f"BarkEngine: expected a model that runs accelerated, got one that cannot: {fallback.reason}"
            ) from None

    @property
    def models(self) -> list[CausalModel]:
        return [self._models.semantic, self._models.coarse]

    def make_capturer(self) -> Capturer | None:
        on = self._patch.settings.cuda_graphs and graphs_are_on()
        return make_capturer(self._models.semantic.weights.device) if on else None

    def streamer(self, **chunking: Any) -> AudioStreamer:
        self._check_same()
        return AudioStreamer(self._model, max_queued_chunks=_ANY_NUMBER, **chunking)

    @torch.no_grad()
    def prepare(
        self,
        arguments: dict[str, Any],
        chunking: Chunking | None,
        check: Callable[[], None],
        generator: Generator,
    ) -> Plan:
        request = self._request(arguments)
        try:
            return RowPlan(self._patches, self._models, request, chunking, check, generator).plan()
        except Fallback as fallback:
            raise NotShared(
                f"BarkEngine: expected options that the accelerated loop has, got {fallback.reason}; "
                "model.generate and stream take them"
            ) from None

    def _request(self, arguments: dict[str, Any]) -> Request:
        given = dict(arguments)
        for name in _REFUSED:
            if given.pop(name, None) is not None:
                raise TypeError(f"{name}: expected no such argument for a request of an engine")
        progress = given.pop("progress", None)
        check_progress(progress)
        if progress:
            raise NotShared("progress: expected none for a request of an engine; its handle says where it stands")
        ids, history = given.pop("input_ids"), given.pop("history_prompt", None)
        if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] > 1:
            raise ValueError(f"input_ids: expected one row for a request, got {ids.shape[0]}")
        # The caller may write to its tensors as soon as `submit` is back.
        ids, history = copy.deepcopy((ids, history))
        given = {name: _own(value) for name, value in given.items()}
        request = self._patch._check(ids, history, given)
        tokens = request.configs.semantic.max_input_semantic_length
        self._patch.settings.stock_bugs.check_text(ids, request.attention_mask, tokens)
        return replace(request, voices=request.voices.of_row(0))

    def _check_same(self) -> None:
        """Raise `ValueError` for a model that is not what it was when the engine was made."""
        if model_patch(self._model) is not self._patch:
            raise _changed("restored or accelerated again")
        _check_stays(self._model)
        self.check_weights()

    def check_weights(self) -> None:
        if _fingerprint(self._model) != self._found:
            raise _changed("moved, cast or given other weights")


def _own(value: Any) -> Any:
    """A copy of the tensors and containers in an argument; objects with a state of their own stay the caller's."""
    if isinstance(value, (Tensor, np.ndarray)):
        return copy.deepcopy(value)
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    if type(value) is dict:
        return {key: _own(item) for key, item in value.items()}
    return value


def _changed(what: str) -> ValueError:
    return ValueError(f"BarkEngine: expected the model as it was when the engine was made, got one that was {what}")


def _check_stays(model: BarkModel) -> None:
    """Raise `ValueError` where accelerate moves the model's weights."""
    parts = list(submodels(model).values())
    if any(takes_turns(part) for part in parts):
        raise NotShared("BarkEngine: expected a model that stays on its device, got one with enable_cpu_offload()")
    if any(keeps_elsewhere(module) for part in parts for module in part.modules()):
        raise NotShared("BarkEngine: expected a model that stays on its device, got one that accelerate offloads")


def _fingerprint(model: BarkModel) -> list[tuple[object, ...]]:
    """Facts that change when a model's weights are replaced, moved, cast or written to through torch."""
    return [
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
        for tensor in (*model.parameters(), *model.buffers())
    ]
