"""The models of a server: loaded when they are first asked for, unloaded when memory is short."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from anyio import to_thread

from .errors import ApiError
from .settings import ModelSpec, Settings
from .speaker import Speaker

ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


class Models:
    """Speakers by name and alias."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._specs = {spec.name: spec for spec in settings.models}
        self._loaded: dict[str, Speaker] = {}  # the least recently used first
        self._loading = asyncio.Lock()
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
        async with self._loading:
            speaker = self._loaded.pop(spec.name, None) or await self._load(spec)
            self._loaded[spec.name] = speaker
            return speaker

    async def close(self) -> None:
        """End all engines."""
        for speaker in self.loaded():
            await to_thread.run_sync(speaker.close)
        self._loaded.clear()

    async def _load(self, spec: ModelSpec) -> Speaker:
        await self._make_room()
        try:
            return await to_thread.run_sync(Speaker.load, spec, self._settings)
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
