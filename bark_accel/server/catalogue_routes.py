"""Models and voices: lists, uploads, deletions."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, File, Form, UploadFile

from .errors import ApiError, ErrorBody
from .schema import Deleted, Model, ModelList, Voice, VoiceList
from .state import State
from .voices import ALIASES, aliased, read_voice

_REFUSED = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 409, 413, 503)}


def catalogue_routes(state: State) -> APIRouter:
    """The routes that list what there is, and change the voices."""
    router = APIRouter(responses=_REFUSED)  # type: ignore[arg-type]
    models, voices = state.models, state.voices

    def all_models() -> list[Model]:
        loaded = {speaker.name for speaker in models.loaded()}
        own = [Model(id=name, loaded=name in loaded) for name in models.names]
        return own + [Model(id=a, alias_of=name, loaded=name in loaded) for a, name in models.aliases.items()]

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """The models, and the names that clients send by default."""
        return ModelList(data=all_models())

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def get_model(name: str) -> Model:
        """One model."""
        for model in all_models():
            if model.id == name:
                return model
        raise ApiError(404, f"there is no model {name!r}", param="model", code="model_not_found")

    @router.get("/v1/audio/voices", tags=["voices"])
    async def list_voices(model: str = models.default) -> VoiceList:
        """The voices of a model, uploaded ones of its kind, and the names that clients send by default."""
        speaker = await models.get(model)
        own = [Voice(id=name, name=name, kind="model") for name in speaker.voices]
        fitting = await to_thread.run_sync(voices.fitting, speaker.fits)
        uploaded = [Voice(id=name, name=name, kind="uploaded") for name in fitting]
        means = aliased(speaker.voices).items()
        aliases = [Voice(id=alias, name=f"{alias} ({v or 'any'})", kind="alias", alias_of=v) for alias, v in means]
        return VoiceList(voices=own + uploaded + aliases)

    @router.post("/v1/audio/voices", status_code=201, tags=["voices"])
    async def add_voice(
        name: Annotated[str, Form(description="1 to 64 letters, digits, '.', '_' or '-'.")],
        file: Annotated[UploadFile, File(description="A voice preset: the .npz file of suno's or of bark_accel's.")],
        model: Annotated[str, Form(description="The model whose voice it is.")] = models.default,
    ) -> Voice:
        """Upload a voice. It has to be yours to use: see docs/server.md."""
        speaker = await models.get(model)
        voices.check_name(name, [*speaker.voices, *ALIASES])
        preset = await to_thread.run_sync(read_voice, await file.read())
        speaker.check_preset(preset)
        # Once more: a neighbour may have taken the name, or the last place, while the file was read.
        voices.check_name(name, [])
        voices.add(name, preset)
        return Voice(id=name, name=name, kind="uploaded")

    @router.delete("/v1/audio/voices/{name}", tags=["voices"])
    async def delete_voice(name: str) -> Deleted:
        """Delete an uploaded voice."""
        if not voices.delete(name):
            raise ApiError(404, f"there is no uploaded voice {name!r}", param="voice", code="voice_not_found")
        return Deleted(id=name)

    return router
