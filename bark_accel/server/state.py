"""The state that the routes of one server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from .metrics import Metrics
from .models import Models
from .settings import Settings
from .voices import UploadedVoices


class Drained(Protocol):
    """A connection that lasts."""

    def drain(self) -> None:
        """Finish what was given, and take no more."""


@dataclass
class State:
    """Models, uploaded voices, figures, connections that last; `ready` once the first model has spoken."""

    settings: Settings
    models: Models
    voices: UploadedVoices
    metrics: Metrics = field(init=False)
    sessions: set[Drained] = field(default_factory=set)
    ready: bool = False
    failure: str | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models.loaded)

    @classmethod
    def of(cls, settings: Settings) -> State:
        """The state of a server that has loaded nothing."""
        return cls(settings, Models(settings), UploadedVoices(settings.voices_dir))
