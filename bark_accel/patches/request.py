"""A checked call of `BarkModel.generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor
from transformers import BarkModel

from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.points import SUBMODELS
from bark_accel.voices.voices import Voices

from .prepared import PREPARED, Prepared, codec_handed

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """Checked arguments of `BarkModel.generate`: `kwargs` are the others, with what is fixed of Transformers' bugs.

    `prepared` has, by stage, what the check has prepared already.
    """

    input_ids: Tensor
    voices: Voices
    configs: GenerationConfigs
    kwargs: dict[str, Any]
    prepared: dict[str, Prepared[Any]] = field(default_factory=dict)

    @property
    def attention_mask(self) -> Tensor | None:
        return self.kwargs.get("attention_mask")

    @property
    def rows(self) -> int:
        return self.input_ids.shape[0]

    def arguments(self, stage: str) -> dict[str, Any]:
        """The arguments of one stage."""
        return arguments_by_stage(self.kwargs)[stage]

    def once(self, stage: str, prepare: Callable[[], T]) -> T:
        """Return what the check has prepared of a stage, else what `prepare` does."""
        return self.prepared[stage].result if stage in self.prepared else prepare()

    def run_stock(self, module: BarkModel, *, with_lengths: bool, **others: Any) -> Any:
        """`BarkModel.generate`, or what took its place in the class: by keywords, all that a wrapper may take."""
        named = {"history_prompt": self.voices.argument(), "return_output_lengths": with_lengths or None}
        handed = {f"{stage}_{PREPARED}": ready for stage, ready in self.prepared.items() if stage != "codec"}
        codec = self.prepared.get("codec")
        with codec_handed(module.codec_model, None if codec is None else codec.result):
            return type(module).generate(module, input_ids=self.input_ids, **named, **self.kwargs | others | handed)


def stage_arguments(kwargs: dict[str, Any], stage: str) -> dict[str, Any]:
    """The arguments of one stage, as `BarkModel.generate` hands them out: prefixed ones come first.

    Like it, drops a `generation_config`, also a stage's own: the model's has those of the stages.
    """
    prefixes = tuple(f"{name}_" for name in SUBMODELS)
    alone = {"attention_mask", "min_eos_p", "generation_config"}
    shared = {k: v for k, v in kwargs.items() if not k.startswith(prefixes) and k not in alone}
    own = {k.removeprefix(f"{stage}_"): v for k, v in kwargs.items() if k.startswith(f"{stage}_")}
    own.pop("generation_config", None)
    return {**shared, **own}


def arguments_by_stage(kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of each stage; the semantic one gets `min_eos_p` in any case, as in Transformers."""
    by_stage = {stage: stage_arguments(kwargs, stage) for stage in SUBMODELS}
    return {**by_stage, "semantic": {"min_eos_p": kwargs.get("min_eos_p"), **by_stage["semantic"]}}
