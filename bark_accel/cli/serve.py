"""`serve`: options of the command line into the settings of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bark_accel._cpus import cpu_quota, usable_cpus

from .console import UserError, out, user_errors, warn
from .request import ModelChoice

# Modules of the extra `serve`.
_NEEDED = ("fastapi", "uvicorn", "websockets", "multipart", "av", "prometheus_client", "sentencex")


@dataclass(frozen=True)
class ServeOptions:
    """The options as they were given; `choice` is of all models, each of which has a name of its own."""

    models: tuple[str, ...]
    choice: ModelChoice
    host: str
    port: int
    wyoming_port: int | None
    max_rows: int
    max_queued: int
    deadline_s: float
    drain_s: int
    max_body: int
    max_memory_gib: float | None
    api_key_file: Path | None
    cors_origins: tuple[str, ...]
    hosts: tuple[str, ...]
    voices_dir: Path | None
    threads: int | None
    replicas: int | None = None
    threads_per_replica: int | None = None


def serve(options: ServeOptions) -> None:
    """Run a server until it is told to end."""
    needed = _NEEDED if options.wyoming_port is None else (*_NEEDED, "wyoming")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: run pip install 'bark_accel[serve]'")
    from bark_accel.bench.models import quiet_transformers
    from bark_accel.server.run import run
    from bark_accel.server.settings import LOOPBACK

    options.choice.check()
    settings = settings_of(options)
    quiet_transformers()
    if options.host not in LOOPBACK and not settings.api_keys:
        warn(f"anybody who reaches {options.host} may use this server; --api-key-file asks for a key")
    if options.host not in LOOPBACK and options.wyoming_port is not None:
        warn(f"anybody who reaches {options.host} may speak at the Wyoming port, which knows no keys")
    if settings.replicas is not None:
        _warn_of_quota(settings.replicas * settings.threads_per_replica)
        torch.set_num_threads(1)
    elif options.threads or _small_only(settings.models):
        torch.set_num_threads(options.threads or 1)
    named = ", ".join(spec.name for spec in settings.models)
    out.print(f"serving {named} on http://{options.host}:{options.port}", markup=False, soft_wrap=True)
    run(settings, options.host, options.port, options.wyoming_port)


def settings_of(options: ServeOptions):
    """The settings that the options mean; raises `UserError` for what cannot be."""
    from bark_accel.server.settings import LOOPBACK, SMALL_BARK, ModelSpec, Settings, read_keys

    hosts = options.hosts or (("localhost", "127.0.0.1") if options.host in LOOPBACK else ())
    with user_errors(ValueError, OSError):
        approximations = options.choice.approximations
        models = tuple(ModelSpec.parse(text, approximations) for text in options.models or (SMALL_BARK,))
        return Settings(
            models=models,
            max_rows=options.max_rows,
            max_queued=options.max_queued,
            deadline_s=options.deadline_s,
            max_body_bytes=options.max_body,
            api_keys=() if options.api_key_file is None else read_keys(options.api_key_file),
            cors_origins=options.cors_origins,
            hosts=() if "*" in hosts else hosts,
            voices_dir=options.voices_dir,
            max_memory_bytes=_bytes(options.max_memory_gib),
            device=options.choice.device,
            drain_s=options.drain_s,
            replicas=options.replicas,
            threads_per_replica=_threads_per_replica(options, models),
        )


def _bytes(gib: float | None) -> int | None:
    """No bound where it is infinite, either."""
    return None if gib is None or math.isinf(gib) else int(gib * 2**30)


def _small_only(models: tuple[Any, ...]) -> bool:
    return all(spec.path is None for spec in models)


def _threads_per_replica(options: ServeOptions, models: tuple[Any, ...]) -> int:
    """Threads of each: as given, an equal part of the CPUs, or one for the small Bark. May raise `UserError`."""
    given, replicas = options.threads_per_replica, options.replicas
    if replicas is None:
        if given is not None:
            raise UserError("--threads-per-replica: expected --replicas with it")
        return 1
    if options.threads is not None:
        raise UserError("--threads: expected --threads-per-replica in its place with --replicas")
    return given or (1 if _small_only(models) else max(1, len(usable_cpus()) // replicas))


def _warn_of_quota(cpus: int) -> None:
    """Replicas whose threads wait for one another are slow where the system stops some of them."""
    quota = cpu_quota()
    if quota is not None and quota < cpus:
        warn(f"this control group has the time of {quota:g} CPUs at once, and replicas would use {cpus}")
