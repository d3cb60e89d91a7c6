"""Bodies of requests and answers, as OpenAI's API has them, and what is added to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_CHARACTERS = 4096
MAX_SEED = 2**63 - 1
SoundFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Policy = Literal["low_latency", "exact", "preview"]


def _text(value: str) -> str:
    """Refuse what no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("expected characters, got halves of surrogate pairs")
    return value


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_text)]


class VoiceById(BaseModel):
    """A voice as an object, which the API takes as well."""

    id: Name


class SpeechOptions(BaseModel):
    """The options of speech."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: Name = Field("tts-1", description="A name or an alias of `GET /v1/models`.")
    voice: Name | VoiceById | None = Field(None, description="A name or an alias of `GET /v1/audio/voices`.")
    response_format: SoundFormat = Field("mp3", description="`pcm` is 24 kHz, 16 bits, mono, little-endian.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="Time is stretched, pitch stays.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The same seed gives the same bytes. Not given: a new one."
    )
    temperature: float | None = Field(
        None, ge=0.01, le=2.0, description="Of sampling, in all stages. Not given: the model's own."
    )
    policy: Policy = Field(
        "low_latency", description="Early sound, the waveform of a whole utterance, or a rough preview."
    )
    instructions: str | None = Field(None, max_length=MAX_CHARACTERS, description="Ignored, with a warning header.")

    @property
    def voice_name(self) -> str | None:
        """The voice's name, if one was given."""
        return self.voice.id if isinstance(self.voice, VoiceById) else self.voice


class SpeechBody(SpeechOptions):
    """`POST /v1/audio/speech`."""

    input: Text = Field(description="The text.", min_length=1)
    stream_format: Literal["audio", "sse"] = Field("audio", description="The sound, or events with pieces of it.")


class Model(BaseModel):
    """A model, or an alias of one."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "bark_accel"
    alias_of: str | None = None
    loaded: bool = False


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Voice(BaseModel):
    """A voice, or an alias of one (`alias_of` null: the model's own choice)."""

    id: str
    name: str
    object: Literal["voice"] = "voice"
    kind: Literal["model", "uploaded", "alias"]
    alias_of: str | None = None


class VoiceList(BaseModel):
    """`GET /v1/audio/voices`."""

    object: Literal["list"] = "list"
    voices: list[Voice]


class Deleted(BaseModel):
    """Answer to a `DELETE`."""

    id: str
    object: Literal["voice.deleted"] = "voice.deleted"
    deleted: bool = True
