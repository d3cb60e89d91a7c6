"""Which Transformers this package was tested with, and what it relies on in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import transformers
from transformers import BarkModel, GenerationMixin
from transformers.models.bark import modeling_bark as hf

TESTED_VERSIONS = ("5.0.0", "5.17.0", "5.23.0")

# What the hooks replace or call, with the leading parameters they rely on. A tail of other parameters is allowed only
# where the hook passes it on untouched.
SIGNATURES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "BarkModel.generate": (
        BarkModel.generate,
        ("self", "input_ids", "history_prompt", "return_output_lengths", "kwargs"),
    ),
    "BarkModel.codec_decode": (BarkModel.codec_decode, ("self", "fine_output", "output_lengths")),
    "BarkSemanticModel.generate": (
        hf.BarkSemanticModel.generate,
        ("self", "input_ids", "semantic_generation_config", "history_prompt", "attention_mask", "kwargs"),
    ),
    "BarkCoarseModel.generate": (
        hf.BarkCoarseModel.generate,
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
    ),
    "BarkFineModel.generate": (
        hf.BarkFineModel.generate,
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
    ),
}


def check_signatures() -> None:
    """Raise unless this Transformers has the signatures that the hooks were written for.

    Raises
    ------
    ImportError
        Names every difference, this version and the tested ones.
    """
    differences = _differences()
    if differences:
        raise ImportError(
            f"bark_accel was tested with Transformers {', '.join(TESTED_VERSIONS)} and cannot patch "
            f"{transformers.__version__}, where {'; '.join(differences)}. Install a tested version: "
            f"pip install transformers=={TESTED_VERSIONS[-1]}"
        )


def _differences() -> list[str]:
    differences = []
    for name, (function, expected) in SIGNATURES.items():
        got = tuple(inspect.signature(function).parameters)
        if got != expected:
            differences.append(f"{name} takes ({', '.join(got)}), expected ({', '.join(expected)})")
    if not _takes_custom_loop():
        differences.append("GenerationMixin.generate takes no callable custom_generate")
    return differences


@cache
def _takes_custom_loop() -> bool:
    parameter = inspect.signature(GenerationMixin.generate).parameters.get("custom_generate")
    return parameter is not None and "Callable" in str(parameter.annotation)


def prompt_argument(module: Any) -> str:
    """The name under which the model takes embeddings; older versions of Transformers miss an s."""
    return "inputs_embeds" if "inputs_embeds" in inspect.signature(type(module).forward).parameters else "input_embeds"


class _Captured(Exception):
    """Carries what `GenerationMixin.generate` prepared out of it, before its loop would start."""

    def __init__(self, prepared: dict[str, Any]):
        self.prepared = prepared


def prepare_generation(module: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Let Transformers resolve and validate the arguments of a generation, and stop it where its loop would start.

    Everything that decides a generation (config priority, defaults, checks, processors, criteria) stays
    Transformers' own, whatever the version. Nothing is computed and no random number is drawn.

    Returns
    -------
    dict
        `input_ids`, `logits_processor`, `stopping_criteria`, `generation_config` and the model's kwargs, as they
        would reach `GenerationMixin._sample`.
    """

    def capture(model: Any, input_ids: Any = None, **prepared: Any) -> None:
        raise _Captured({"input_ids": input_ids, **prepared})

    try:
        GenerationMixin.generate(module, *args, **{**kwargs, "custom_generate": capture})
    except _Captured as captured:
        return captured.prepared
    raise AssertionError("GenerationMixin.generate returned without calling its loop")
