"""Makes Transformers' Bark fast: the same tokens for the same seed.

from bark_accel import accelerate_bark, stream

model = accelerate_bark(BarkModel.from_pretrained("suno/bark-small"))
audio = model.generate(**inputs)  # as before
for chunk in stream(model, **inputs):  # or while it is generated
    play(chunk)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .engine.errors import DeadlineExceeded, EngineBusy, EngineClosed, RequestCancelled
    from .engine.request import SpeechRequest
    from .hf.presets import generate_with_preset
    from .hf.voices import batch_inputs
    from .longform.reader import LongForm, SpokenChunk
    from .patches.api import accelerate_bark, free_memory, restore_bark
    from .patches.engine import BarkEngine
    from .patches.reporting import acceleration_report
    from .patches.speaker import long_form
    from .patches.stream_speed import stream_speed
    from .patches.warmup import warmup
    from .report import AccelerationError, AccelerationReport, FallbackKind, FallbackReason, StageReport
    from .small_bark import small_bark_path
    from .stages.ragged import trim_rows
    from .streaming.listening import stream
    from .streaming.plan import StreamPlan, StreamSpeed
    from .streaming.streamer import AudioStreamer
    from .voices.preset import load_voice_preset, save_voice_preset

# Imported when they are first used: torch takes more than a second, and `bark-accel --help` needs none of it.
_HOME = {
    "AccelerationError": "report",
    "AccelerationReport": "report",
    "AudioStreamer": "streaming.streamer",
    "BarkEngine": "patches.engine",
    "DeadlineExceeded": "engine.errors",
    "EngineBusy": "engine.errors",
    "EngineClosed": "engine.errors",
    "FallbackKind": "report",
    "FallbackReason": "report",
    "LongForm": "longform.reader",
    "RequestCancelled": "engine.errors",
    "SpeechRequest": "engine.request",
    "SpokenChunk": "longform.reader",
    "StageReport": "report",
    "StreamPlan": "streaming.plan",
    "StreamSpeed": "streaming.plan",
    "accelerate_bark": "patches.api",
    "acceleration_report": "patches.reporting",
    "batch_inputs": "hf.voices",
    "free_memory": "patches.api",
    "generate_with_preset": "hf.presets",
    "load_voice_preset": "voices.preset",
    "long_form": "patches.speaker",
    "restore_bark": "patches.api",
    "save_voice_preset": "voices.preset",
    "small_bark_path": "small_bark",
    "stream": "streaming.listening",
    "stream_speed": "patches.stream_speed",
    "trim_rows": "stages.ragged",
    "warmup": "patches.warmup",
}

__all__ = [
    "AccelerationError",
    "AccelerationReport",
    "AudioStreamer",
    "BarkEngine",
    "DeadlineExceeded",
    "EngineBusy",
    "EngineClosed",
    "FallbackKind",
    "FallbackReason",
    "LongForm",
    "RequestCancelled",
    "SpeechRequest",
    "SpokenChunk",
    "StageReport",
    "StreamPlan",
    "StreamSpeed",
    "accelerate_bark",
    "acceleration_report",
    "batch_inputs",
    "free_memory",
    "generate_with_preset",
    "load_voice_preset",
    "long_form",
    "restore_bark",
    "save_voice_preset",
    "small_bark_path",
    "stream",
    "stream_speed",
    "trim_rows",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
