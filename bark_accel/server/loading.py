"""Loads a model, accelerates it, and has it speak once."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from bark_accel import SpeechRequest, accelerate_bark, acceleration_report
from bark_accel.bench.models import LoadedBark, load_bark, text_tokens

from .settings import ModelSpec


class Speaks(Protocol):
    """An engine."""

    def submit(self, *, seed: int | None = None, **arguments: Any) -> SpeechRequest: ...


def load_accelerated(spec: ModelSpec, device: str | None) -> LoadedBark:
    """Load a model. Raises `OSError` or `ValueError` where that cannot be."""
    return accelerated(load_bark(spec.path), spec, device)


def accelerated(loaded: LoadedBark, spec: ModelSpec, device: str | None = None) -> LoadedBark:
    """Accelerate a loaded model, in place."""
    if device is not None:
        torch.nn.Module.to(loaded.model, device)
    accelerate_bark(loaded.model, **spec.approximations.arguments())
    return loaded


def greet(engine: Speaks, loaded: LoadedBark) -> None:
    """Let an engine speak once, so that nobody waits for what is done at first use."""
    text = "hello" if loaded.vocabulary is None else loaded.vocabulary[0]
    inputs = text_inputs(loaded, text, text_tokens(loaded, "")[1])
    engine.submit(**inputs, seed=0, policy="low_latency", semantic_max_new_tokens=12).result()


def text_inputs(loaded: LoadedBark, text: str, max_tokens: int) -> dict[str, Any]:
    """`input_ids` and `attention_mask` of a text, Tensors [1, T] int64."""
    inputs = loaded.any_processor([text], max_length=max_tokens)
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def weight_bytes(loaded: LoadedBark) -> int:
    """Bytes of a model's weights and of their copies in other precisions and layouts, once it has spoken."""
    own = sum(t.nbytes for t in loaded.model.parameters())
    return own + sum(stage.copied_bytes for stage in acceleration_report(loaded.model).stages)
