"""Base of the stages' patches: a module and the weights read from it; `stock()` calls Transformers' own method.

A patch's `generate` is a bound method of a small object that owns one module: a patched module still pickles and
deep-copies, and the copy is patched too. Names and signatures are those of the methods they replace.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bark_accel._forked import avoid_lost_threads
from bark_accel.decoding.cuda_graphs import GraphStore, graphs_are_on
from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.decoding.speculation import Draft, Speculation
from bark_accel.decoding.token_source import TokenSource
from bark_accel.hf.inputs import check_not_meta
from bark_accel.hf.offload import is_offloaded
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import Ops, get_ops, is_served, runs_natively
from bark_accel.ops.checks import MAX_HEAD_SIZE
from bark_accel.report import DraftCounts, Fallback, FallbackKind, FallbackLog, TokenChoice
from bark_accel.stages.codec_weights import CodecWeights
from bark_accel.streaming.plan import StreamSpeed
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.dynamo import Compiler
from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.precision import INT8_WEIGHTS, ConvertedWeights, convert
from bark_accel.transformer.weights import TransformerWeights, map_tensors, tensors_of
from bark_accel.voices.voices import Voices

from .kept_codec import KeptCodec
from .offload import summon, weights_present
from .step_view import step_view
from .stock_bugs import StockBugs


@dataclass
class Settings:
    """Shared by the patches of one model."""

    backend: str
    log: FallbackLog
    precision: str = "same"
    speculate: bool | None = None
    release_originals: bool = False
    stock_bugs: StockBugs = field(default_factory=StockBugs)
    cuda_graphs: bool = True
    attention: str = "sdpa"
    fit_windows: bool = False
    long_coarse_windows: bool = False
    compiler: Compiler | None = None
    kv_cache_dtype: str = "auto"
    pool: KVCachePool = field(default_factory=KVCachePool)
    stream_speeds: dict[tuple[int, int], StreamSpeed] = field(default_factory=dict)
    codec: KeptCodec = field(default_factory=KeptCodec)


W = TypeVar("W", TransformerWeights, CodecWeights)


class StagePatch(Generic[W]):
    """Owns a module, the weights read from it, and the way back to Transformers' own method."""

    stage: str

    def __init__(self, module: Any, settings: Settings):
        self.module = module
        self.settings = settings
        self.conversions = ConvertedWeights()
        self.released: W | None = None
        """The weights, where the module's own were given up."""

    def weights(self) -> W:
        """The module's weights as they are now; raises `Fallback` where they cannot be used.

        They are read at every call: views cost a millisecond, and nothing can be out of date, whatever was loaded,
        moved, cast, replaced or written to in between. Only the codec's folded copies are kept (`KeptCodec`).
        """
        avoid_lost_threads()
        if self.released is not None:
            return self._released_weights(self.released)
        with torch.inference_mode(False), torch.no_grad(), weights_present(self.module):
            return self._read_weights()

    def _released_weights(self, released: W) -> W:
        if self.module.training:
            raise Fallback(self.stage, FallbackKind.TRAINING, "and its weights were released")
        device = next(self.module.parameters()).device
        if device != next(iter(tensors_of(released))).device:
            self.released = released = map_tensors(released, lambda tensor: tensor.to(device))
        return released

    def _read_weights(self) -> W:
        raise NotImplementedError

    def _transformer_weights(self) -> TransformerWeights:
        weights = transformer_weights(self.stage, self.module)
        size = transformer_spec(self.module).head_size
        exact = self.settings.precision == "same" and weights.dtype == torch.float32
        if not exact and size > MAX_HEAD_SIZE:
            raise Fallback(self.stage, FallbackKind.HEAD_SIZE, f"expected at most {MAX_HEAD_SIZE}, got {size}")
        return weights

    def ready_weights(self) -> W:
        summon(self.module)
        weights = self.weights()
        device = next(iter(tensors_of(weights))).device
        if self.settings.backend == "native" and not is_served(device):
            raise Fallback(self.stage, FallbackKind.DEVICE, f"backend='native' has no ops for {device}")
        if device.type == "meta":
            check_not_meta(self.module)
        if torch.is_autocast_enabled(device.type):
            raise Fallback(self.stage, FallbackKind.AUTOCAST, f"for {device.type}")
        return weights

    def converted(self, weights: TransformerWeights) -> TransformerWeights:
        """The weights in the precision that `accelerate_bark` was asked for."""
        if self.released is not None:
            return weights
        with torch.inference_mode(False), torch.no_grad():
            if weights.device.type != "cpu" and is_offloaded(self.module):
                return convert(weights, self.settings.precision)  # kept, copies would fill what offloading frees
            return self.conversions.get(weights, self.settings.precision, self.finished)

    def finished(self, converted: TransformerWeights) -> TransformerWeights:
        """Return what is kept of the copies that a conversion made."""
        return converted

    def copied_bytes(self) -> int:
        """Bytes of the weights that are not views of the module's own tensors."""
        return self._bytes_beside_the_module(self.weights(), *self.conversions.kept())

    def free_memory(self) -> int:
        """Give up what the next generation makes again; the bytes of it."""
        return self._bytes_beside_the_module(*self.conversions.clear())

    def _bytes_beside_the_module(self, *weights: object) -> int:
        own = {t.untyped_storage().data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        held = {t.data_ptr(): t for t in tensors_of(weights)}
        return sum(t.nbytes for t in held.values() if t.untyped_storage().data_ptr() not in own)

    def precision_name(self, dtype: torch.dtype) -> str:
        """Name the precision of the matrices that a generation uses."""
        precision = self.settings.precision
        return str(dtype).removeprefix("torch.") if precision == "same" else precision

    def ops_name(self, device: torch.device) -> str:
        """Which ops a generation on `device` would use."""
        return "native" if runs_natively(self.settings.backend, device) else "torch"

    def ops(self, device: torch.device) -> Ops:
        return get_ops(self.settings.backend, device, self.settings.attention)

    def rows_end(self, voices: Voices) -> bool:
        """Tell whether each row of a batch is to end where it would alone."""
        return not voices.shared or self.settings.stock_bugs.fixes("batch_tails")

    def stock(self, tokens: Tensor, *others: object, module: Any = None, **kwargs: Any) -> Any:
        """Call the class's own method, on a view of the module if given, as `BarkModel.generate` calls it."""
        on = self.module if module is None else module
        return type(on).generate(on, tokens, **self.by_name(*others), **kwargs)

    def by_name(self, *others: object) -> dict[str, Any]:
        """Name the arguments of the stage's `generate` that follow its tokens: all that a replacement may take."""
        parameters = inspect.signature(type(self).generate).parameters  # type: ignore[attr-defined]
        return dict(zip(list(parameters)[2:], others, strict=False))


class CausalPatch(StagePatch[TransformerWeights]):
    """Patch of a stage that generates token by token."""

    def __init__(self, module: Any, settings: Settings):
        super().__init__(module, settings)
        self.draft_counts = DraftCounts()
        self.graphs = GraphStore(f"the {self.stage} stage's decode step")

    def _read_weights(self) -> TransformerWeights:
        return self._transformer_weights()

    def ready_weights(self) -> TransformerWeights:
        weights = super().ready_weights()
        if self.settings.kv_cache_dtype == "int8" and weights.device.type != "cpu":
            reason = f"kv_cache_dtype='int8' is for the CPU, got {weights.device}"
            raise Fallback(self.stage, FallbackKind.DEVICE, reason)
        return weights

    def free_memory(self) -> int:
        self.graphs.clear()
        return super().free_memory()

    def model(self, weights: TransformerWeights) -> CausalModel:
        """The transformer as its stage runs it."""
        spec, ops = transformer_spec(self.module), self.ops(weights.device)
        cache_dtype = torch.int8 if self.settings.kv_cache_dtype == "int8" else None
        return CausalModel(self.converted(weights), spec, ops, self.settings.compiler, cache_dtype)

    @contextmanager
    def looped(self, fallback: Fallback) -> Iterator[Any]:
        """Lend the module that Transformers' own `generate` is to run on: a view with our steps where it can be."""
        self.settings.log.note(fallback)
        if not isinstance(fallback, TokenChoice):
            yield self.module
            return
        weights = self.ready_weights()
        model, pool = self.model(weights), self.settings.pool
        place = (model.cache_dtype, weights.device)
        with step_view(self.module, model, lambda rows: pool.borrow(model.spec, rows, *place)) as view:
            yield view

    def note_options(self, sampling: SamplingConfig) -> None:
        """Tell the report which processors and criteria are called, and which options change nothing."""
        self.settings.log.note_unneeded(f"{self.stage}: {option}" for option in sampling.unneeded)
        plan = sampling.processors
        if plan is not None and plan.names:
            self.settings.log.note(TokenChoice(self.stage, FallbackKind.LOGITS_PROCESSOR, plan.names))
        if plan is not None and plan.criteria:
            self.settings.log.note(TokenChoice(self.stage, FallbackKind.STOPPING_CRITERIA, plan.criteria))

    @contextmanager
    def token_source(
        self, model: CausalModel, weights: TransformerWeights, cache: KVCache, sampling: SamplingConfig
    ) -> Iterator[TokenSource | None]:
        """Yield the token source of one generation with `cache`: drafts where they are on, else graphs if possible."""
        rows = cache.keys.shape[1]
        draft = self.draft(weights, rows)
        if draft is not None:
            yield Speculation(model, draft)
        elif self.settings.cuda_graphs and graphs_are_on() and not sampling.calls_processors:
            # Weights that come and go never stand where they stood: their graphs would fill what offloading frees.
            with self.graphs.lend_steps(model, cache, keep=not is_offloaded(self.module)) as graphs:
                yield graphs
        else:
            yield None

    def draft(self, weights: TransformerWeights, rows: int) -> Draft | None:
        """The int8 model that drafts for a batch of `rows`, where drafts are on."""
        if rows != 1 or not self.speculates(weights):
            return None
        with torch.inference_mode(False), torch.no_grad():
            narrow = self.conversions.get(weights, "int8")
        spec = transformer_spec(self.module)
        # Compiled steps on a CPU read an int8 cache in less time than the model's own.
        cache_dtype = torch.int8 if self._runs_compiled_on_cpu(weights.device) else None
        return Draft(CausalModel(narrow, spec, self.ops(weights.device), None, cache_dtype), self.draft_counts)

    def speculates(self, weights: TransformerWeights) -> bool:
        """Tell whether drafts are on: if not set, where they were measured to pay and memory is not scarce."""
        settings = self.settings
        if settings.speculate is not None:
            return settings.speculate
        if settings.release_originals:
            return False
        return self._runs_compiled_on_cpu(weights.device) and settings.precision not in INT8_WEIGHTS

    def _runs_compiled_on_cpu(self, device: torch.device) -> bool:
        return device.type == "cpu" and runs_natively(self.settings.backend, device)
