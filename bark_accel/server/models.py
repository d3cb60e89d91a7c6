"""The models of a server: loaded when they are first asked for, unloaded when memory is short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from anyio import to_thread

from bark_accel import EngineClosed

from .errors import ApiError, as_api_error
from .settings import ModelSpec, Settings
from .speaker import Speaker

# Between two looks whether there is a place.
_RETRY_S = 0.02
ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


class Models:
    """Speakers by name and alias."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._specs = {spec.name: spec for spec in settings.models}
        self._loaded: dict[str, Speaker] = {}  # the least recently used first
        self._loads: dict[str, asyncio.Task[None]] = {}
        # One at a time: each first makes room, and the worker threads are few.
        self._turn = asyncio.Lock()
        self._closed = False
        self.default = settings.models[0].name

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    @property
    def aliases(self) -> dict[str, str]:
        """The model of each alias; a model with such a name hides it."""
        return {alias: self.default for alias in ALIASES if alias not in self._specs}

    def loaded(self) -> Iterable[Speaker]:
        """The loaded ones."""
        return list(self._loaded.values())

    async def get(self, name: str) -> Speaker:
        """A speaker, loaded now if it must be.

        Raises
        ------
        ApiError
            404 for an unknown name; 503 where no memory is left and nothing idle, or where it cannot be loaded.
        """
        spec = self._specs.get(self.aliases.get(name, name))
        if spec is None:
            known = ", ".join([*self._specs, *self.aliases])
            raise ApiError(404, f"there is no model {name!r}, only {known}", param="model", code="model_not_found")
        # Another look after each load: a neighbour's may have unloaded it again.
        while spec.name not in self._loaded:
            await asyncio.shield(self._load_of(spec))
        speaker = self._loaded.pop(spec.name)
        self._loaded[spec.name] = speaker
        return speaker

    @asynccontextmanager
    async def place(self, name: str, *, patient: bool = False) -> AsyncIterator[Speaker]:
        """A speaker with a place in its line, which keeps it loaded until the block is left.

        Parameters
        ----------
        name : str
        patient : bool
            Wait for a place where none is left.

        Raises
        ------
        ApiError
            As `get`; 429 where no place is left.
        """
        speaker = await self.get(name)
        while patient and speaker.full:
            await asyncio.sleep(_RETRY_S)
            speaker = await self.get(name)
        speaker.enter()
        try:
            yield speaker
        finally:
            speaker.leave()

    async def close(self) -> None:
        """End all engines, once what is being loaded is there."""
        self._closed = True
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        for speaker in self.loaded():
            await to_thread.run_sync(speaker.close)
        self._loaded.clear()

    def _load_of(self, spec: ModelSpec) -> asyncio.Task[None]:
        """The one load of a model that all who ask for it wait for; who leaves does not end it."""
        if spec.name not in self._loads:
            self._loads[spec.name] = asyncio.create_task(self._load(spec))
            self._loads[spec.name].add_done_callback(lambda task: self._loads.pop(spec.name))
        return self._loads[spec.name]

    async def _load(self, spec: ModelSpec) -> None:
        async with self._turn:
            if self._closed:
                raise as_api_error(EngineClosed())
            await self._make_room()
            try:
                self._loaded[spec.name] = await to_thread.run_sync(Speaker.load, spec, self._settings)
            except (OSError, ValueError) as error:
                raise ApiError(503, f"{spec.name} cannot be loaded: {error}", code="model_not_loaded") from error

    async def _make_room(self) -> None:
        """Unload idle models until what is loaded is below the bound, or raise."""
        most = self._settings.max_memory_bytes
        while most is not None and sum(speaker.nbytes for speaker in self._loaded.values()) >= most:
            idle = next((name for name, speaker in self._loaded.items() if not speaker.users), None)
            if idle is None:
                message = "no memory is left for another model while those that are loaded are in use"
                raise ApiError(503, message, code="no_memory", headers={"Retry-After": "5"})
            await to_thread.run_sync(self._loaded.pop(idle).close)
