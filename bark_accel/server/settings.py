"""Settings of a server, checked before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from bark_accel.approximations import EXACT, Approximations
from bark_accel.transformer.kv_cache import KV_CACHE_DTYPES
from bark_accel.transformer.precision import WEIGHTS

from .cpus import disjoint_cpus

SMALL_BARK = "small-bark"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ModelSpec:
    """A model by the name that clients use.

    Parameters
    ----------
    name : str
    path : str, optional
        A folder or an id of the Hub. None: the small Bark that comes with the package.
    approximations : Approximations
    """

    name: str
    path: str | None = None
    approximations: Approximations = EXACT

    @classmethod
    def parse(cls, text: str, approximations: Approximations = EXACT) -> ModelSpec:
        """Read `[name=]path[:weights]`; without a name, it is the last part of the path.

        `approximations` are those of a model that names no weights of its own, and the others of one that does.

        Raises
        ------
        ValueError
            A part is empty, or there are no such weights.
        """
        name, equals, place = text.rpartition("=")
        path, colon, own = place.rpartition(":")
        if colon and own in WEIGHTS:
            place, approximations = path, replace(approximations, weights=own)
        name = name if equals else Path(place).name
        if not name or not place:
            raise ValueError(f"model: expected name=path[:weights], got {text!r}")
        if approximations.weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {approximations.weights!r}")
        if approximations.kv_cache_dtype not in KV_CACHE_DTYPES:
            expected = ", ".join(KV_CACHE_DTYPES)
            raise ValueError(f"kv_cache_dtype: expected one of {expected}, got {approximations.kv_cache_dtype!r}")
        return cls(name, None if place == SMALL_BARK else place, approximations)


@dataclass(frozen=True)
class Settings:
    """Everything that `bark-accel serve` can be told.

    Parameters
    ----------
    models : tuple of ModelSpec
        The first is loaded at the start and meant by the aliases, others when they are first asked for.
    max_rows : int
        Utterances of a model that are generated at once, by each replica.
    max_queued : int
        Requests to a model that wait beside those; one more is answered with 429.
    deadline_s : float
        Seconds after which a request is ended, sent or not.
    max_body_bytes : int
        Longest body of a request.
    api_keys : tuple of str
        Accepted keys; empty: none is asked for.
    cors_origins : tuple of str
        Origins of other sites whose pages may call.
    hosts : tuple of str
        Accepted names of this server in the header `Host`; empty: any.
    voices_dir : Path, optional
        Folder that keeps uploaded voices; None: they end with the server.
    max_memory_bytes : int, optional
        Bound of what loaded models take together; idle ones are unloaded.
    device : str, optional
        Where models run. None: the CPU.
    drain_s : float
        Seconds that requests have to finish after SIGTERM.
    replicas : int, optional
        Processes of each model, pinned to CPUs of their own. None: models run in the server's process.
    threads_per_replica : int
        CPUs of each.
    """

    models: tuple[ModelSpec, ...] = (ModelSpec(SMALL_BARK),)
    max_rows: int = 8
    max_queued: int = 32
    deadline_s: float = 120.0
    max_body_bytes: int = 1 << 20
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    voices_dir: Path | None = None
    max_memory_bytes: int | None = None
    device: str | None = None
    drain_s: float = 30.0
    replicas: int | None = None
    threads_per_replica: int = 1

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.models]
        if not names or len(names) != len(set(names)):
            raise ValueError(f"model: expected one or more models with names of their own, got {', '.join(names)}")
        if self.replicas is not None and self.device not in (None, "cpu"):
            raise ValueError(f"replicas: expected the CPU as device with them, got {self.device}")
        _ = self.cpus

    @property
    def rows(self) -> int:
        """Utterances of a model that are generated at once."""
        return self.max_rows * (self.replicas or 1)

    @property
    def cpus(self) -> tuple[frozenset[int], ...]:
        """The CPUs of each replica; empty without any. Raises `ValueError` where there are too few."""
        if self.replicas is None:
            return ()
        return tuple(map(frozenset, disjoint_cpus(self.replicas, self.threads_per_replica)))


def read_keys(path: Path) -> tuple[str, ...]:
    """Read a file of API keys, one a line.

    Raises
    ------
    ValueError
        It has none: a server that accepts anybody by mistake is worse than none. Or one has other characters than
        those that a header holds.
    OSError
        It cannot be read.
    """
    keys = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not keys:
        raise ValueError(f"api-key-file: expected a key a line, got none in {path}")
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError(f"api-key-file: expected keys of ASCII characters without spaces, got another in {path}")
    return keys
