"""Finds the weights of suno's models: its own files in its cache folder, or Transformers' of the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bark_accel.hf import suno_hub
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.specs import coarse_spec, fine_spec, semantic_spec
from bark_accel.hf.suno_checkpoint import load_suno_stage
from bark_accel.stages.spec import CoarseSpec, FineSpec, SemanticSpec

T = TypeVar("T")
PARTS = {"text": "semantic", "coarse": "coarse_acoustics", "fine": "fine_acoustics", "codec": "codec_model"}
"""By suno's name of a stage, `BarkModel`'s."""
_HUB = {False: "suno/bark", True: "suno/bark-small"}


@dataclass(frozen=True)
class Specs:
    """Token layouts of a model, and how many semantic tokens it speaks at once."""

    text: SemanticSpec
    coarse: CoarseSpec
    fine: FineSpec
    max_tokens: int

    @classmethod
    def of_model(cls, model: Any) -> Specs:
        """Read a model's generation config; raises `ValueError` where it is not Bark's."""
        configs = GenerationConfigs.of(model)
        return cls.of([configs.semantic, configs.coarse, configs.fine], configs.codebook_size)

    @classmethod
    def of(cls, configs: list[Any], codebook_size: int) -> Specs:
        """Read the three generation configs."""
        semantic, coarse, fine = configs
        return cls(
            semantic_spec(semantic),
            coarse_spec(semantic, coarse, codebook_size),
            fine_spec(semantic, coarse, fine, codebook_size),
            semantic.max_new_tokens,
        )


@dataclass(frozen=True)
class Found:
    """A stage's module; the text stage's tokenizer, and the processor of its model if it has one."""

    module: Any
    specs: Specs
    tokenizer: Any = None
    processor: Any = None


class Sources:
    """Looks for stages; a whole model of the Hub is loaded once for all of them."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}

    def find(self, stage: str, small: bool) -> Found:
        """Load a stage on the CPU.

        Raises
        ------
        FileNotFoundError
            It is neither in suno's cache folder nor to be had from the Hub.
        ValueError
            The file in suno's cache folder is no checkpoint of that stage.
        """
        if stage == "codec":
            return self._codec()
        path = checkpoint_path(stage, small)
        if not path.is_file():
            return self._from_hub(stage, _HUB[small], path)
        module = load_suno_stage(path, stage)
        tokenizer = _had("tokenizer", suno_hub.load_tokenizer, suno_hub.TOKENIZER) if stage == "text" else None
        return Found(module, _suno_specs(), tokenizer)

    def _codec(self) -> Found:
        """The codec of a model that is here already, else EnCodec's own."""
        for model in self._models.values():
            return Found(model.codec_model, Specs.of_model(model))
        return Found(_had("codec", suno_hub.load_codec, suno_hub.CODEC), _suno_specs())

    def _from_hub(self, stage: str, name: str, path: Path) -> Found:
        if name not in self._models:
            self._models[name] = _had(f"{stage} stage", lambda: suno_hub.load_model(name), name, path)
        model = self._models[name]
        module, specs = getattr(model, PARTS[stage]), Specs.of_model(model)
        if stage != "text":
            return Found(module, specs)
        processor = _had("processor", lambda: suno_hub.load_processor(name), name)
        return Found(module, specs, processor.tokenizer, processor)


def checkpoint_path(stage: str, small: bool) -> Path:
    """The place of suno's own file of a stage (text, coarse, fine)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "suno" / "bark_v0" / f"{stage}{'' if small else '_2'}.pt"


def _suno_specs() -> Specs:
    return Specs.of(suno_hub.suno_configs(), suno_hub.CODEBOOK_SIZE)


def _had(what: str, load: Callable[[], T], name: str, path: Path | None = None) -> T:
    """Call `load`; where it fails, raise `FileNotFoundError` with both places where this could have been."""
    try:
        return load()
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = "" if path is None else f"suno's file {path}, or "
        raise FileNotFoundError(
            f"{what}: expected {place}the Hub's {name}, downloaded or in reach; got neither ({reason}). A model that "
            "lies elsewhere speaks after bark_accel.suno.use_model(model, processor)"
        ) from error
