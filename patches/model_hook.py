"""`BarkModel.generate` and `BarkModel.codec_decode` of an accelerated instance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel.report import FallbackKind, FallbackReason

from .fallback import Fallback
from .hooks import CodecHook, Hook, Settings, fine_temperature, semantic_ids
from .inputs import check_input_ids, read_history

SUBMODELS = {"semantic": "semantic", "coarse": "coarse_acoustics", "fine": "fine_acoustics"}

_NESTED = {
    "semantic_config": BarkSemanticGenerationConfig,
    "coarse_acoustics_config": BarkCoarseGenerationConfig,
    "fine_acoustics_config": BarkFineGenerationConfig,
}


class ModelHook:
    """Owns the whole model.

    The data flow between the stages stays Transformers' own `generate`, which calls the sub-models' hooks.
    """

    def __init__(self, module: Any, settings: Settings):
        self.module = module
        self.settings = settings
        self.codec = CodecHook(module.codec_model, settings)
        self.patched_submodels = [getattr(module, name) for name in SUBMODELS.values()]
        self._warned: set[str] = set()

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        history_prompt: Any = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, list[int]]:
        """See `BarkModel.generate`. An empty utterance gives an empty waveform, where Transformers fails."""
        semantic, coarse, fine = self._generation_configs()
        max_tokens = semantic.max_input_semantic_length
        rows = check_input_ids(input_ids, kwargs.get("attention_mask"), max_tokens)
        preset = self._preset(history_prompt, semantic, coarse, fine)
        self._warn_ignored(semantic, kwargs)
        fine_temperature(fine, stage_arguments(kwargs, "fine"))
        self._check_hooked()
        if self.settings.log.strict:
            self._check_all_stages(semantic, coarse, rows, kwargs)
        return type(self.module).generate(self.module, input_ids, preset, return_output_lengths, **kwargs)

    def codec_decode(self, fine_output: Tensor, output_lengths: Tensor | None = None) -> Tensor | list[Tensor]:
        """See `BarkModel.codec_decode`. No frames give no samples, where Transformers fails."""
        if fine_output.shape[-1] == 0:
            empty = torch.zeros(fine_output.shape[0], 0, dtype=self.module.dtype, device=fine_output.device)
            return empty if output_lengths is None else list(empty)
        try:
            stage = self.codec_hook().ready_stage()
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            return type(self.module).codec_decode(self.module, fine_output, output_lengths)
        latents = stage.embed(fine_output)
        if output_lengths is None:
            return stage.decode(latents)
        # The LSTM would hear the padding, so rows of different length are decoded one by one, as in Transformers.
        rows = zip(latents, output_lengths, strict=False)
        return [stage.decode(row[None, :, : int(length)])[0] for row, length in rows]

    def codec_hook(self) -> CodecHook:
        """The hook of the codec that the model has now."""
        self.codec.module = self.module.codec_model
        return self.codec

    def _check_all_stages(self, semantic: Any, coarse: Any, rows: int, kwargs: dict[str, Any]) -> None:
        """Raise `AccelerationError` for what a later stage could not do, before any work is done."""
        hooks = {stage: _stage_hook(getattr(self.module, name)) for stage, name in SUBMODELS.items()}
        codebook_size = self.module.generation_config.codebook_size
        semantic_kwargs = {**stage_arguments(kwargs, "semantic"), "min_eos_p": kwargs.get("min_eos_p")}
        try:
            hooks["semantic"].prepare(semantic, rows, semantic_kwargs)
            hooks["coarse"].prepare(semantic, coarse, codebook_size, rows, stage_arguments(kwargs, "coarse"))
            hooks["fine"].prepare()
            self.codec_hook().ready_stage()
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)

    def _generation_configs(self) -> list[Any]:
        config = self.module.generation_config
        built = []
        for name, kind in _NESTED.items():
            nested = getattr(config, name, None)
            if not isinstance(nested, Mapping):
                raise ValueError(
                    f"model.generation_config.{name}: expected a dict (BarkModel.generate needs the nested configs as "
                    f"dicts, as from_pretrained gives them), got {type(nested).__name__}"
                )
            built.append(kind(**nested))
        return built

    def _preset(self, history: Any, semantic: Any, coarse: Any, fine: Any) -> dict[str, Tensor] | None:
        codebook_size = self.module.generation_config.codebook_size
        parts = {
            "semantic_prompt": read_history(history, "semantic_prompt", rows=0, ids=semantic_ids(semantic)),
            "coarse_prompt": read_history(history, "coarse_prompt", rows=coarse.n_coarse_codebooks, ids=codebook_size),
            "fine_prompt": read_history(history, "fine_prompt", rows=fine.n_fine_codebooks, ids=codebook_size),
        }
        return None if history is None else {k: v.to(self.module.device) for k, v in parts.items() if v is not None}

    def _warn_ignored(self, semantic: Any, kwargs: dict[str, Any]) -> None:
        """Say aloud, once, what Transformers ignores silently."""
        if semantic.min_eos_p is not None and kwargs.get("min_eos_p") is None:
            self._warn_once(
                "BarkModel.generate ignores generation_config.semantic_config['min_eos_p']; pass min_eos_p="
            )
        if "generation_config" in kwargs:
            self._warn_once("BarkModel.generate ignores generation_config=; change model.generation_config instead")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=5)

    def _check_hooked(self) -> None:
        for stage, name in SUBMODELS.items():
            if _stage_hook(getattr(self.module, name)) is None:
                detail = f"model.{name} was replaced or restored after accelerate_bark; call it again"
                self.settings.log.record(FallbackReason(stage, FallbackKind.REPLACED_MODULE, detail))


def stage_arguments(kwargs: dict[str, Any], stage: str) -> dict[str, Any]:
    """The arguments of one stage, as `BarkModel.generate` hands them out: prefixed ones come first."""
    prefixes = tuple(f"{name}_" for name in SUBMODELS)
    alone = {"attention_mask", "min_eos_p", "generation_config"}
    shared = {k: v for k, v in kwargs.items() if not k.startswith(prefixes) and k not in alone}
    own = {k.removeprefix(f"{stage}_"): v for k, v in kwargs.items() if k.startswith(f"{stage}_")}
    return {**shared, **own}


def _stage_hook(submodel: Any) -> Any:
    """The hook behind a sub-model's `generate`, also under wrappers such as the recorder's; None for stock's."""
    method = submodel.generate
    while method is not None:
        owner = getattr(method, "__self__", None)
        if isinstance(owner, Hook):
            return owner
        method = getattr(method, "__wrapped__", None)
    return None
