"""The codes of a generation as the voice preset they make."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.streaming.owner import owner_of
from bark_accel.streaming.streamer import AudioSource, AudioStreamer
from bark_accel.voices.preset import VoicePreset

from .configs import GenerationConfigs
from .points import SUBMODELS, submodels
from .stage_trace import StageTrace, trace_stages

VIEW = "_bark_accel_view"
"""Argument of an accelerated model's `generate`: a view of the model to drive in its place."""


def generate_with_preset(model: BarkModel, **generate_kwargs: Any) -> tuple[Tensor, VoicePreset | None]:
    """Generate one utterance, and the voice preset that its own codes make.

    Parameters
    ----------
    model : BarkModel
        Accelerated or not.
    generate_kwargs
        What `model.generate` takes, for one row, but for `return_output_lengths` and `trim`.

    Returns
    -------
    audio : Tensor
        [1, S], as `model.generate` returns it.
    preset : dict, optional
        Arrays of int64, `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F], for
        `save_voice_preset` or as `history_prompt`; None with a streamer of policy "preview".

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        More than one row, or one of those arguments.
    """
    taken = generate_kwargs.keys() & {"return_output_lengths", "trim"}
    if taken:
        raise ValueError(f"{min(taken)}: expected no such argument, there is one row and it has no padding")
    rows = len(generate_kwargs.get("input_ids", ()))
    if rows != 1:
        raise ValueError(f"input_ids: expected one row, got {rows}")
    audio, _, (preset,) = generate_with_presets(model, **generate_kwargs)
    return audio, preset


def generate_with_presets(model: Any, **kwargs: Any) -> tuple[Tensor, list[int], list[VoicePreset | None]]:
    """`model.generate(**kwargs)`, stock or accelerated; thread-safe as that is.

    Returns
    -------
    audio : Tensor
        [B, S], rows silent after their end.
    lengths : list of int
        Samples of each row.
    presets : list of dict
        The voice preset that each row makes, of empty arrays for an empty row; None where an `AudioStreamer` asked
        for a preview, without the fine codebooks.
    """
    if not isinstance(model, BarkModel):
        raise TypeError(f"model: expected a transformers.BarkModel, got {type(model).__name__}")
    check_generate(model)
    with traced(model) as (view, trace):
        # An accelerated model's method, which may be wrapped, drives the model that the view was made of.
        place = {VIEW: view} if owner_of(view.generate, AudioSource) else {}
        audio, lengths = view.generate(**kwargs, **place, return_output_lengths=True)
    streamer = kwargs.get("streamer")
    made = streamer.presets if isinstance(streamer, AudioStreamer) else traced_presets(view, trace, lengths)
    return audio, lengths, [None] * len(lengths) if made is None else [*made]


@contextmanager
def traced(model: BarkModel) -> Iterator[tuple[Any, StageTrace]]:
    """A view of the model whose stages are traced; other threads may use the model itself meanwhile."""
    view = copy.copy(model)
    view._modules = dict(model._modules)
    for stage, submodel in submodels(model).items():
        setattr(view, SUBMODELS[stage].attribute, copy.copy(submodel))
    with trace_stages(view) as trace:
        yield view, trace


def check_generate(model: BarkModel) -> None:
    """Raise `ValueError` for a `generate` that could not be driven on a view of the model."""
    own = getattr(model.generate, "__self__", None) is model
    if not own and owner_of(model.generate, AudioSource) is None:
        raise ValueError("model.generate: expected BarkModel's own or that of accelerate_bark, got another one")


def traced_presets(model: BarkModel, trace: StageTrace, lengths: list[int]) -> list[VoicePreset]:
    """The voice presets of the generation that was traced."""
    configs = GenerationConfigs.of(model)
    pad, codebooks = configs.semantic.semantic_pad_token, configs.coarse.n_coarse_codebooks
    return presets_of(trace.outputs["semantic"], trace.outputs["fine"], lengths, pad, codebooks)


def presets_of(
    semantic: Tensor, codes: Tensor, lengths: list[int], semantic_pad_token: int, num_coarse_codebooks: int
) -> list[VoicePreset]:
    """The voice preset of each row, arrays of int64.

    Parameters
    ----------
    semantic : Tensor
        [B, T], padded.
    codes : Tensor
        [B, K, F] of the fine stage; its first codebooks are the coarse stage's.
    lengths : list of int
        Samples of each row; the longest has all F frames.
    """
    samples_per_frame = max(lengths) // codes.shape[2] if codes.shape[2] else 1
    presets = []
    for tokens, row, samples in zip(semantic, codes, lengths, strict=True):
        fine = row[:, : samples // samples_per_frame].to("cpu", torch.int64).numpy()
        said = tokens[tokens != semantic_pad_token].to("cpu", torch.int64).numpy()
        parts = {"semantic_prompt": said, "coarse_prompt": fine[:num_coarse_codebooks], "fine_prompt": fine}
        presets.append({key: part.copy() for key, part in parts.items()})
    return presets
