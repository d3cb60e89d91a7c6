"""Messages between the front, a keeper and its replicas, and the way they are sent.

They go between processes of one server, over sockets that nobody else can open, so they may be pickled.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bark_accel.bench.models import LoadedBark
from bark_accel.engine.errors import EngineTraceback

from ..settings import ModelSpec


@dataclass(frozen=True)
class Order:
    """A model for a keeper to load, and how its replicas are to run it: one for each set of CPUs."""

    spec: ModelSpec
    max_rows: int
    cpus: tuple[frozenset[int], ...]

    @property
    def threads(self) -> int:
        """Number of CPUs of each replica."""
        return len(self.cpus[0])


@dataclass(frozen=True)
class Loaded:
    """A keeper's answer: the model without its weights, and the bytes that these take."""

    outline: LoadedBark
    weight_bytes: int


@dataclass(frozen=True)
class Ready:
    """A replica has spoken; its engine's caches take so many bytes."""

    cache_bytes: int


@dataclass(frozen=True)
class Submit:
    """A request for a replica's engine, with arguments of `BarkEngine.submit`.

    `after` is the number of what is heard before it, which may be another replica's, and `heard_in_s` the seconds that
    this lasts as far as it is there.
    """

    number: int
    arguments: dict[str, Any]
    after: int | None = None
    heard_in_s: float = 0.0


@dataclass(frozen=True)
class Cancel:
    """Nobody listens to a request any more."""

    number: int


@dataclass(frozen=True)
class Samples:
    """The next samples [S] float32 of a request."""

    number: int
    samples: np.ndarray


@dataclass(frozen=True)
class Ended:
    """A request's last message: the voice preset that it made, or what ended it."""

    number: int
    preset: dict[str, np.ndarray] | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Failure:
    """An error on its way to another process, which gets its traceback as text."""

    error: BaseException
    text: str = field(repr=False)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error))
        try:
            arrives_equal = str(pickle.loads(pickle.dumps(error))) == str(error)
        except Exception:
            arrives_equal = False
        return cls(error if arrives_equal else RuntimeError(f"{type(error).__name__}: {error}"), text)

    def restored(self) -> BaseException:
        """The error, caused by its text."""
        self.error.__cause__ = EngineTraceback("\n" + self.text)
        return self.error


def send(connection: Connection, message: Any) -> None:
    """Send a message; raises `OSError` where nobody is at the other end.

    Not `Connection.send`, whose pickler torch changes to pass tensors as open files.
    """
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """Wait for a message; raises `EOFError` or `OSError` where none will come."""
    return pickle.loads(connection.recv_bytes())
