"""The speech server as a deployment of Ray Serve: replicas on a cluster, as many as the queue asks for.

    serve run bark_accel.server.ray_serve:speech model=suno/bark-small weights=int8 num_cpus=4 max_replicas=8

Every replica is the whole server in a process of its own, with a model and an engine.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from bark_accel.approximations import Approximations
from bark_accel.bench.models import quiet_transformers

from .app import create_app
from .settings import SMALL_BARK, ModelSpec, Settings, read_keys

try:
    from ray import serve
    from ray.serve import Application
except ModuleNotFoundError as error:
    raise ImportError(
        f"bark_accel.server.ray_serve needs Ray Serve: pip install 'bark_accel[ray-serve]' ({error})"
    ) from error

# Between two looks whether the model has spoken.
_LOOK_S = 0.05


class SpeechArgs(BaseModel):
    """Arguments of `speech`, from the command line or a config file of Ray Serve.

    Parameters
    ----------
    model : str
        As `--model` of `bark-accel serve`: `[name=]path[:weights]`, where every node finds it.
    weights, kv_cache_dtype, fit_windows, long_coarse_windows
        As in `accelerate_bark`.
    device : str, optional
        None: `cuda` where `num_gpus` is more than 0, else the CPU.
    num_cpus, num_gpus : float
        Of a replica, also fractions. torch has as many threads as whole CPUs, at least one.
    min_replicas, max_replicas : int
    target_ongoing_requests : float, optional
        Requests of a replica beyond which Serve starts another one. None: `max_rows`.
    autoscaling : dict
        Other fields of Serve's `autoscaling_config`, such as `upscale_delay_s`.
    max_rows : int
        Utterances of a replica that are generated at once; as many more wait in it for a place.
    max_queued : int
        Requests that wait before all replicas; Serve answers one more with 503.
    api_key_file, voices_dir : Path, optional
        As of `bark-accel serve`; on every node. Without a folder, an uploaded voice is known to one replica only.
    cors_origins, hosts : list of str
        As of `bark-accel serve`.
    deadline_s : float
        Seconds after which a request is ended.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = SMALL_BARK
    weights: str = "same"
    kv_cache_dtype: str = "auto"
    fit_windows: bool = False
    long_coarse_windows: bool = False
    device: str | None = None
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    autoscaling: dict[str, Any] = {}
    max_rows: int = Field(8, ge=1)
    max_queued: int = Field(32, ge=1)
    api_key_file: Path | None = None
    voices_dir: Path | None = None
    cors_origins: list[str] = []
    hosts: list[str] = []
    deadline_s: float = Field(120.0, gt=0)

    def settings(self) -> Settings:
        """The settings of a replica's server; raises what `Settings` raises."""
        approximations = Approximations(self.weights, self.kv_cache_dtype, self.fit_windows, self.long_coarse_windows)
        return Settings(
            models=(ModelSpec.parse(self.model, approximations),),
            max_rows=self.max_rows,
            max_queued=self.max_rows,
            deadline_s=self.deadline_s,
            api_keys=() if self.api_key_file is None else read_keys(self.api_key_file),
            cors_origins=tuple(self.cors_origins),
            hosts=tuple(self.hosts),
            voices_dir=self.voices_dir,
            device=self.device or ("cuda" if self.num_gpus > 0 else None),
        )


def speech(args: SpeechArgs) -> Application:
    """Build the application for `serve run` or `ray.serve.run`.

    Raises
    ------
    ValueError, OSError
        No such weights, a model without a name, a file of keys that cannot be read: before anything is deployed.
    """
    settings, threads = args.settings(), max(1, int(args.num_cpus))

    def build() -> FastAPI:
        torch.set_num_threads(threads)
        quiet_transformers()
        return _ready_when_started(create_app(settings))

    deployment = serve.deployment(
        name="speech",
        max_ongoing_requests=2 * args.max_rows,
        max_queued_requests=args.max_queued,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        graceful_shutdown_timeout_s=settings.drain_s,
        autoscaling_config={
            "target_ongoing_requests": args.target_ongoing_requests or args.max_rows,
            **args.autoscaling,
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
        },
    )
    return deployment(serve.ingress(build)()).bind()


def _ready_when_started(app: FastAPI) -> FastAPI:
    """Let the application start once its model has spoken: Serve sends requests to what has started."""
    start = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with start(app) as found:
            state = app.state.server
            while not state.ready:
                if state.failure is not None:
                    raise RuntimeError(state.failure)
                await asyncio.sleep(_LOOK_S)
            yield found

    app.router.lifespan_context = lifespan
    return app
