"""The methods of Transformers that patches replace, and where a `BarkModel` keeps what they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import BarkModel
from transformers.models.bark import modeling_bark as hf
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)


@dataclass(frozen=True)
class PatchPoint:
    """A method of Transformers, the parameters it is expected to have, and the class that has it.

    `attribute` of a `BarkModel` holds the sub-model of that class ("" where it is the model itself), `config_name` of
    its generation config what `config` is made of.
    """

    kind: type[Any]
    method: str
    parameters: tuple[str, ...]
    attribute: str = ""
    config_name: str = ""
    config: type[Any] | None = None

    def owner(self, model: BarkModel) -> Any:
        """The object of a model that has the method."""
        return getattr(model, self.attribute) if self.attribute else model


# A tail of other parameters (`kwargs`) is allowed only where the patch passes it on untouched.
POINTS = {
    "model": PatchPoint(
        BarkModel, "generate", ("self", "input_ids", "history_prompt", "return_output_lengths", "kwargs")
    ),
    "semantic": PatchPoint(
        hf.BarkSemanticModel,
        "generate",
        ("self", "input_ids", "semantic_generation_config", "history_prompt", "attention_mask", "kwargs"),
        "semantic",
        "semantic_config",
        BarkSemanticGenerationConfig,
    ),
    "coarse": PatchPoint(
        hf.BarkCoarseModel,
        "generate",
        (
            "self",
            "semantic_output",
            "semantic_generation_config",
            "coarse_generation_config",
            "codebook_size",
            "history_prompt",
            "return_output_lengths",
            "kwargs",
        ),
        "coarse_acoustics",
        "coarse_acoustics_config",
        BarkCoarseGenerationConfig,
    ),
    "fine": PatchPoint(
        hf.BarkFineModel,
        "generate",
        (
            "self",
            "coarse_output",
            "semantic_generation_config",
            "coarse_generation_config",
            "fine_generation_config",
            "codebook_size",
            "history_prompt",
            "kwargs",
        ),
        "fine_acoustics",
        "fine_acoustics_config",
        BarkFineGenerationConfig,
    ),
    "codec": PatchPoint(BarkModel, "codec_decode", ("self", "fine_output", "output_lengths")),
}
SUBMODELS = {stage: point for stage, point in POINTS.items() if point.attribute}
"""The points of the three transformers, by stage."""


def submodels(model: BarkModel) -> dict[str, Any]:
    """The three transformers that a model has now, by stage."""
    return {stage: point.owner(model) for stage, point in SUBMODELS.items()}
