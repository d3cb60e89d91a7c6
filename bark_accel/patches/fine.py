"""`BarkFineModel.generate` of one module, and the decoder of its codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)
from transformers.models.bark.modeling_bark import BarkFineModel

from bark_accel.decoding.cuda_graphs import graphs_are_on
from bark_accel.hf.configs import fine_limits
from bark_accel.hf.offload import device_of, is_offloaded
from bark_accel.hf.specs import fine_spec
from bark_accel.hf.transformer import transformer_spec
from bark_accel.ops.backend import TORCH_CODEC, get_codec_ops
from bark_accel.ops.interface import CodecOps
from bark_accel.report import Fallback, FallbackKind, attempt
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.codec_weights import CodecWeights
from bark_accel.stages.fine import FineStage, row_frames
from bark_accel.stages.fine_graphs import WindowGraphs
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.ragged import join_rows
from bark_accel.stages.spec import FineSpec
from bark_accel.transformer.packing import packed
from bark_accel.transformer.weights import TransformerWeights
from bark_accel.voices.voices import Voices

from .prepared import PREPARED, prepared
from .stage_patch import Settings, StagePatch
from .stage_progress import PROGRESS, counting_passes


class FinePatch(StagePatch[TransformerWeights]):
    stage = "fine"

    def __init__(self, module: Any, settings: Settings):
        super().__init__(module, settings)
        self.graphs = WindowGraphs()

    def free_memory(self) -> int:
        self.graphs.clear()
        return super().free_memory()

    def ops_name(self, device: torch.device) -> str:
        """Which ops, or whose program, a generation on `device` would use."""
        return super().ops_name(device) if self.settings.compiler is None else self.settings.compiler.backend

    def _read_weights(self) -> TransformerWeights:
        return self._transformer_weights()

    @torch.no_grad()
    def generate(
        self,
        coarse_output: Tensor,
        semantic_generation_config: BarkSemanticGenerationConfig | None = None,
        coarse_generation_config: BarkCoarseGenerationConfig | None = None,
        fine_generation_config: BarkFineGenerationConfig | None = None,
        codebook_size: int = 1024,
        history_prompt: object = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkFineModel.generate`. No frames in give no frames out, where Transformers fails.

        `coarse_output` may have any shape [B, ...] whose rows hold the codes frame by frame.
        Where `history_prompt` is a list, or "batch_tails" is fixed, rows end where the coarse stage has padded them,
        and their codes are 0 from there on.
        """
        progress, handed = kwargs.pop(PROGRESS, None), kwargs.pop(PREPARED, None)
        semantic, coarse, fine = semantic_generation_config, coarse_generation_config, fine_generation_config
        if semantic is None or coarse is None or fine is None:
            return self.stock(coarse_output, semantic, coarse, fine, **kwargs)
        coarse_output = _flat_rows(coarse_output, coarse.n_coarse_codebooks)
        check_fine_codebooks(self.module, fine)
        temperature = self.settings.stock_bugs.fine_temperature(fine, kwargs)
        rows, codebooks = coarse_output.shape[0], fine.n_fine_codebooks
        voices = Voices.read(history_prompt, rows, fine_limits(fine, codebook_size), several=True)
        if coarse_output.shape[1] == 0:
            return coarse_output.new_zeros(rows, codebooks, 0)
        spec = self.spec(fine_spec(semantic, coarse, fine, codebook_size), voices)
        frames = coarse_output.shape[1] // spec.num_coarse_codebooks
        if progress is not None:
            progress.begin("sound", frames)
        weights = attempt(lambda: prepared(handed, self.prepare))
        if isinstance(weights, Fallback):
            self.settings.log.note(weights)
            kwargs = {**kwargs, "temperature": temperature}
            configs = (semantic, coarse, fine, codebook_size)
            codes = self._stock_rows(coarse_output, spec, configs, voices, kwargs)
        else:
            stage = self.ready_stage(weights, spec)
            sampling, coarse_output = FineSampling(temperature), coarse_output.to(weights.device)
            codes = stage.run(coarse_output, voices.fine, sampling, counting_passes(progress, frames))
        return codes.to(_dtype_of_codes(coarse_output, history_prompt))

    def spec(self, spec: FineSpec, voices: Voices) -> FineSpec:
        """Transformers' numbers, what is fixed of its bugs, and whether windows fit."""
        return replace(spec, rows_end=self.rows_end(voices), fit_windows=self.settings.fit_windows)

    def _stock_rows(
        self, coarse_output: Tensor, spec: FineSpec, configs: tuple[Any, ...], voices: Voices, kwargs: dict[str, Any]
    ) -> Tensor:
        """Transformers' own method; row after row where each has an end or a voice preset of its own."""
        voices = voices.to(device_of(self.module))
        if not spec.rows_end:
            return self.stock(coarse_output, *configs, voices.argument(), **kwargs)
        rows = []
        for row, frames in enumerate(row_frames(spec, coarse_output)):
            tokens = coarse_output[row : row + 1, : frames * spec.num_coarse_codebooks]
            codes = self.stock(tokens, *configs, voices.of_row(row).argument(), **kwargs) if frames else tokens[:, None]
            rows.append(codes.expand(-1, spec.num_codebooks, -1))
        return join_rows(rows, 0)

    def prepare(self) -> TransformerWeights:
        """Prepare a generation; raises `Fallback` where Transformers has to run it."""
        return self.ready_weights()

    def finished(self, converted: TransformerWeights) -> TransformerWeights:
        """Lay them out ahead: no decode step reads these."""
        return converted if self.settings.compiler is not None else packed(converted, self.ops(converted.device))

    def ready_stage(self, weights: TransformerWeights, spec: FineSpec) -> FineStage:
        """The stage on the weights that `prepare` gave."""
        transformer, ops = transformer_spec(self.module), self.ops(weights.device)
        graphs = self.graphs if self.captures else None
        return FineStage(self.converted(weights), transformer, spec, ops, self.settings.compiler, graphs)

    @property
    def captures(self) -> bool:
        """Tell whether windows may be CUDA graphs: not of weights that come and go, for they are read once or twice."""
        settings = self.settings
        return settings.cuda_graphs and graphs_are_on() and settings.compiler is None and not is_offloaded(self.module)


def check_fine_codebooks(module: BarkFineModel, config: BarkFineGenerationConfig) -> None:
    """Raise `ValueError` for a generation config of another number of codebooks than the module has."""
    got, expected = config.n_fine_codebooks, module.config.n_codes_total
    if got != expected:
        raise ValueError(f"n_fine_codebooks of the fine generation config: expected the model's {expected}, got {got}")


def _flat_rows(coarse_output: Tensor, codebooks: int) -> Tensor:
    """[B, codebooks * T] of what Transformers views as [B, T, codebooks]."""
    if not isinstance(coarse_output, Tensor) or coarse_output.dtype not in (torch.int32, torch.int64):
        got = coarse_output.dtype if isinstance(coarse_output, Tensor) else type(coarse_output).__name__
        raise TypeError(f"coarse_output: expected a tensor of int64 or int32, got {got}")
    shape = list(coarse_output.shape)
    if len(shape) < 2 or shape[0] == 0 or coarse_output[0].numel() % codebooks:
        raise ValueError(f"coarse_output: expected [batch, ...], rows of {codebooks} codes for each frame, got {shape}")
    return coarse_output.flatten(1)


def _dtype_of_codes(coarse_output: Tensor, history_prompt: object) -> torch.dtype:
    """Return the dtype of Transformers' codes: its input's, or the promoted one where it joins a history to it."""
    history = history_prompt.get("fine_prompt") if isinstance(history_prompt, Mapping) else None
    dtype = coarse_output.dtype
    return torch.promote_types(dtype, history.dtype) if isinstance(history, Tensor) else dtype


class CodecPatch(StagePatch[CodecWeights]):
    """Decodes for `BarkModel.codec_decode`; owns the codec."""

    stage = "codec"

    def ops_name(self, device: torch.device) -> str:
        """The codec runs on our kernels or on torch's own matrix products, or is compiled."""
        if self.settings.compiler is not None:
            return self.settings.compiler.backend
        if super().ops_name(device) == "torch":
            return "torch"
        # What `"native"` refuses is told by the report's `native_fault`.
        return "torch" if get_codec_ops("auto", device) is TORCH_CODEC else "native"

    def precision_name(self, dtype: torch.dtype) -> str:
        """The codec computes in float32."""
        return "float32"

    def _read_weights(self) -> CodecWeights:
        return self.settings.codec.weights(self.module)

    def copied_bytes(self) -> int:
        before = self.settings.codec.held()
        self.weights()
        if not before:
            self.settings.codec.clear()  # a question is no reason to keep them
        return self._bytes_beside_the_module(self.settings.codec.held())

    def free_memory(self) -> int:
        return self._bytes_beside_the_module(self.settings.codec.clear())

    def ready_stage(self) -> CodecStage:
        """A stage with the codec's weights as they are now; raises `Fallback` where they cannot be used."""
        weights = self.ready_weights()
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.module.parameters()):
            raise Fallback(self.stage, FallbackKind.GRADIENTS, "codec_decode outside torch.no_grad()")
        return self.settings.codec.stage(weights, self._ops(weights.codebooks[0].device), self.settings.compiler)

    def _ops(self, device: torch.device) -> CodecOps:
        return TORCH_CODEC if self.settings.compiler is not None else get_codec_ops(self.settings.backend, device)
