"""Events of a Wyoming connection: read and checked; and the one that tells of the voices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from wyoming.event import Event, Eventable, async_read_event
from wyoming.info import Attribution, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeVoice

from bark_accel import __version__

from .errors import ApiError, invalid_value
from .speaker import Speaker, language_of
from .voices import ALIASES

EVENT_BYTES = 1 << 16
"""Of an event's line, its data or its payload: a text of most characters, each in an escape, is shorter."""
# What the library raises for JSON that is no event.
_NOT_AN_EVENT = (AttributeError, KeyError, TypeError, RecursionError)
_KINDS: dict[type, TypeAdapter] = {
    kind: TypeAdapter(kind) for kind in (Ping, Synthesize, SynthesizeStart, SynthesizeChunk)
}
_BARK = Attribution(name="Suno", url="https://github.com/suno-ai/bark")

E = TypeVar("E", bound=Eventable)
V = TypeVar("V")


class EventReader:
    """Reads a client's events, of bounded length.

    Parameters
    ----------
    reader : StreamReader
        With lines of at most `EVENT_BYTES`.
    """

    def __init__(self, reader: asyncio.StreamReader):
        self._reader = reader
        self._ended = False

    async def read(self) -> Event | None:
        """The next event; None where the client has left. Raises `ApiError` (400) for anything else."""
        try:
            event = await async_read_event(cast(asyncio.StreamReader, self))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except _NOT_AN_EVENT:
            raise bad_event("an object with a type and data, got another") from None
        if event is None and not self._ended:
            raise bad_event(f"a line of JSON within {EVENT_BYTES} bytes, got another")
        return event

    # What the library reads with.

    async def readline(self) -> bytes:
        """Read a line, as a StreamReader does."""
        line = await self._reader.readline()
        self._ended = not line.endswith(b"\n")
        return line

    async def readexactly(self, count: int) -> bytes:
        """Read bytes as a StreamReader does, which would take in whatever length a client names."""
        if not isinstance(count, int) or count > EVENT_BYTES:
            raise bad_event(f"data and payload of at most {EVENT_BYTES} bytes, got {count!r}")
        return await self._reader.readexactly(count)


def info(speaker: Speaker, uploaded: list[str]) -> Info:
    """The voices of a model, and uploaded ones, which speak all its languages; without any, the model's own choice."""
    languages = sorted({language_of(name) for name in speaker.voices}) or ["en"]
    voices = [_voice(name, [language_of(name)]) for name in speaker.voices]
    voices += [_voice(name, languages) for name in uploaded]
    voices = voices or [_voice(ALIASES[0], languages)]
    return Info(tts=[TtsProgram(**_about(speaker.name), voices=voices, supports_synthesize_streaming=True)])


def voice_name(speaker: Speaker, voice: SynthesizeVoice) -> str | None:
    """The name of a voice that was asked for by name, or by language ("de", "de-DE"). Raises `ApiError`."""
    if voice.speaker is not None:
        raise ApiError(400, f"expected a voice without speakers, got {voice.speaker!r}", param="speaker")
    if voice.language is None:
        return voice.name
    code = re.split("[-_]", str(voice.language))[0].lower()
    found = [name for name in speaker.voices or [ALIASES[0]] if language_of(name) == code]
    if not found:
        message = f"there is no voice for the language {voice.language!r}; describe lists them"
        raise ApiError(400, message, param="voice", code="voice_not_found")
    return found[0]


def _voice(name: str, languages: list[str]) -> TtsVoice:
    return TtsVoice(**_about(name), languages=languages)


def _about(name: str) -> dict[str, Any]:
    return {"name": name, "description": name, "attribution": _BARK, "installed": True, "version": __version__}


def parsed(kind: type[E], event: Event) -> E:
    """An event as what it says it is: the library takes it as it comes. Raises `ApiError` (400)."""
    return checked(_KINDS[kind].validate_python, event.data or {})


def checked(validate: Callable[[Any], V], value: Any) -> V:
    """Return what `validate`, one of pydantic's, makes of a value. Raises `ApiError` (400)."""
    try:
        return validate(value)
    except ValidationError as error:
        raise invalid_value(error.errors(), "text", inside=0) from None


def bad_event(expected: str) -> ApiError:
    """The refusal of what is no event, or comes at the wrong time."""
    return ApiError(400, f"expected {expected}", code="invalid_event")
