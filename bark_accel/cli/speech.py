"""The steps that `say` and `read` share: load, check the words, find the voice, accelerate, save the voice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bark_accel import accelerate_bark, save_voice_preset

from .console import UserError, fail, out, user_errors
from .demo import load
from .request import ModelChoice, Request

if TYPE_CHECKING:
    from bark_accel.bench.models import LoadedBark
    from bark_accel.voices.preset import VoicePreset


def load_speaker(choice: ModelChoice, text: str) -> LoadedBark:
    """Load a model, move and convert it; raise `UserError` unless it knows the words of `text`."""
    loaded = load(choice.name)
    _check_words(loaded, text)
    model: torch.nn.Module = loaded.model
    model.to(device=choice.device, dtype=None if choice.dtype is None else getattr(torch, choice.dtype))
    return loaded


def accelerate(loaded: LoadedBark, choice: ModelChoice) -> None:
    """Accelerate the loaded model; raise `UserError` where it cannot be, or not with these options."""
    with user_errors(ValueError):
        accelerate_bark(loaded.model, **choice.approximations.arguments())


def find_voice(loaded: LoadedBark, voice: str | None) -> VoicePreset | None:
    """Read a voice preset from a file or from the checkpoint; raise `UserError` where there is none."""
    from bark_accel.hf.voices import resolve_voice

    with user_errors(OSError, TypeError, ValueError):
        return resolve_voice(loaded.processor, voice)


def limits(loaded: LoadedBark, request: Request) -> dict[str, Any]:
    """Arguments of `generate`; raise `UserError` for a length that the model does not have."""
    from bark_accel.bench.models import semantic_tokens

    if request.max_seconds is None:
        return {}
    with user_errors(ValueError):
        return {"semantic_max_new_tokens": semantic_tokens(loaded.model, request.max_seconds)}


def save_voice(preset: VoicePreset | None, path: Path | None) -> None:
    """Write the voice that was heard, if that was asked for; fail where nothing was heard."""
    if path is None:
        return
    if preset is None:
        fail(f"nothing was said to its end, so {path} was not written")
    save_voice_preset(path, preset)
    out.print(f"wrote {path}: the voice", markup=False, soft_wrap=True)


def _check_words(loaded: LoadedBark, text: str) -> None:
    from bark_accel.bench.models import text_tokens, unknown_words

    if text_tokens(loaded, text)[0] == 0:
        raise UserError("the text has no words: there is nothing to say")
    unknown = [] if loaded.vocabulary is None else unknown_words(loaded, text)
    if unknown:
        raise UserError(
            f"{loaded.name} does not know: {', '.join(unknown)}. It only says digits and these words: "
            f"{', '.join(loaded.vocabulary or ())}. For any other text name a model, such as --model suno/bark-small"
        )
