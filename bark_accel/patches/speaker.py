"""Says texts of any length: a `BarkModel` and its processor as the speaker."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel._arguments import check_flags, whole_number
from bark_accel._forked import avoid_lost_threads
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.offload import device_of
from bark_accel.hf.points import submodels
from bark_accel.hf.voices import resolve_voice
from bark_accel.longform.chunk_store import ChunkStore, kept_setting
from bark_accel.longform.languages import characters_per_second as usual_characters_per_second
from bark_accel.longform.languages import check_language
from bark_accel.longform.reader import CHUNK_PAUSE_S, PARAGRAPH_PAUSE_S, LongForm, LongTextOptions
from bark_accel.longform.text import plan_chunks
from bark_accel.streaming.owner import owner_of
from bark_accel.streaming.plan import StreamSpeed
from bark_accel.streaming.streamer import POLICIES
from bark_accel.transformer.weights import tensors_of
from bark_accel.voices.preset import preset_digest
from bark_accel.voices.voices import Voices

from .chunk_speaker import ChunkSpeaker
from .model import ModelPatch
from .stage_patch import Settings, StagePatch
from .stream_speed import stream_speed

_DEFAULT_BATCH_SIZE = 4
# In a folder's manifest.
_SPEED = "stream speed"
# Set by long_form itself.
_TAKEN = {"input_ids", "attention_mask", "history_prompt", "streamer", "generation_config"}
_TAKEN |= {"return_output_lengths", "trim"}
# Values of each parameter that tell two models apart.
_SAMPLED_VALUES = 64


def long_form(
    model: BarkModel,
    processor: Any,
    text: str,
    *,
    voice: str | Path | Mapping[str, np.ndarray] | None = None,
    carry_voice: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    stream: bool = False,
    policy: str = "low_latency",
    work_dir: str | Path | None = None,
    language: str = "en",
    max_chunk_s: float = 13.0,
    first_chunk_s: float | None = None,
    characters_per_second: float | None = None,
    paragraph_pause_s: float = PARAGRAPH_PAUSE_S,
    chunk_pause_s: float = CHUNK_PAUSE_S,
    on_progress: Callable[[int, int], None] | None = None,
    **generate_kwargs: Any,
) -> LongForm:
    """Say a text of any length: sentences packed into chunks that Bark can say, generated in order.

    The chunks are planned here; iterating over the result generates them, several at once. Each is what `generate`
    (`bark_accel.stream`, with `stream`) gives for it alone after `torch.manual_seed` of a seed of its own, to the bit
    on a CPU with the same number of threads: it depends neither on the chunks beside it nor on interruptions.

    Parameters
    ----------
    model : BarkModel
        Accelerated or not; accelerated for `stream=True`.
    processor : BarkProcessor
        Of the same checkpoint.
    text : str
        Blank lines, form feeds and paragraph separators (U+2029) separate paragraphs. One without words ("* * *") is a
        second pause. Words that the end of a line has cut ("mor-" and "ning") are joined.
    voice : str, path or mapping, optional
        A name that the processor knows, an .npz file or the arrays of a voice preset. None: the model's own choice,
        another one for every chunk unless `carry_voice`.
    carry_voice : bool
        Say each chunk in the voice of the one before, its own codes as history; `voice` is that of the first. A chunk
        of less than a second passes on the voice it had. Chunks are then generated one by one.
    seed : int
        The chunks' seeds are derived from it. Torch's default generator is left as it was.
    batch_size : int, optional
        Chunks generated at once, without effect on the audio; as many again wait to be given out. Each needs another
        key-value cache (72 MiB with bark-small in float32, 192 MiB with bark). None: 4, or 1 with `carry_voice` or
        `stream`. A model that is not accelerated, and options that need Transformers' own loop or model, go one by one.
    stream : bool
        Give each chunk's audio out while it is generated, as an `AudioStreamer` does. The next chunk is generated while
        this one is heard.
    policy : {"low_latency", "exact", "preview"}
        With `stream`: see `AudioStreamer`.
    work_dir : path, optional
        A folder that keeps each chunk as it is finished. A later run with the same arguments reads what is there and
        goes on; its audio is that of a run that was never interrupted.
    language : str
        ISO 639-1 code, for the rules that find sentences and for how fast it is spoken. Bark speaks de, en, es, fr, hi,
        it, ja, ko, pl, pt, ru, tr and zh.
    max_chunk_s : float
        A chunk is planned to last at most this long, estimated from its characters. Bark ends an utterance after 15.4 s
        whatever is left of its text (`SpokenChunk.cut`, with a warning).
    first_chunk_s : float, optional
        The same for the first chunk, so that a stream begins sooner: a chunk's semantic tokens come before its first
        sound. None: `max_chunk_s`.
    characters_per_second : float, optional
        How fast the text is said, spaces counted. None: an estimate for the language, 14 (150 English words a minute)
        where there is none. German, Italian, Polish and Portuguese 13, Hindi 11, Korean 5.5, Japanese 4.5, Chinese 3.5;
        alphabets lie close together when read aloud, Chinese and Japanese are scaled by their share of English
        (characters a minute in the International Reading Speed Texts, 2012), Korean and Hindi by the length of
        translations.
    paragraph_pause_s, chunk_pause_s : float
        Silence after a paragraph, and between the chunks of one.
    on_progress : callable, optional
        Called with the number of chunks that are ready and of all, as each becomes ready.
    generate_kwargs
        Other arguments of `model.generate`, for every chunk.

    Returns
    -------
    LongForm
        Iterate over it for `SpokenChunk`s, or call `waveform()`.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came; also a `work_dir` of another text, model or arguments.
    ImportError
        The package sentencex is missing: `pip install 'bark_accel[long]'`.
    """
    if not isinstance(model, BarkModel):
        raise TypeError(f"model: expected a transformers.BarkModel, got {type(model).__name__}")
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text: expected characters, got halves of surrogate pairs; read the file in its own encoding")
    avoid_lost_threads()
    check_flags(carry_voice=carry_voice, stream=stream)
    seed = whole_number("seed", seed, 0)
    batch_size = _batch_size(batch_size, one_by_one=carry_voice or stream)
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress: expected a callable or None, got {type(on_progress).__name__}")
    if not callable(getattr(processor, "tokenizer", None)):
        raise TypeError(f"processor: expected a BarkProcessor, got {type(processor).__name__}")
    language = check_language(language)
    if characters_per_second is None:
        characters_per_second = usual_characters_per_second(language)
    _check_numbers(max_chunk_s, first_chunk_s, characters_per_second, paragraph_pause_s, chunk_pause_s)
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    if carry_voice and stream and policy == "preview":
        raise ValueError("carry_voice: expected another policy than 'preview' with it, which makes no fine codes")
    taken = [name for name in generate_kwargs if name in _TAKEN]
    if taken:
        raise ValueError(f"{taken[0]}: expected no such argument, long_form makes the inputs of each generation")
    if work_dir is not None and not isinstance(work_dir, (str, os.PathLike)):
        raise TypeError(f"work_dir: expected a path or None, got {type(work_dir).__name__}")
    preset = resolve_voice(processor, voice)
    Voices.read(preset, 1, GenerationConfigs.of(model).code_limits, name="voice")
    heard = {name: value for name, value in generate_kwargs.items() if name != "progress"}
    plain = None if work_dir is None else _plain(heard)
    speed = _stream_speed(model, work_dir) if stream and policy == "low_latency" else None
    speaker = ChunkSpeaker(model, processor, generate_kwargs, policy if stream else None, speed)
    chunks = plan_chunks(
        text,
        speaker.count_tokens,
        max_tokens=speaker.max_tokens,
        max_characters=max_chunk_s * characters_per_second,
        language=language,
        first_characters=None if first_chunk_s is None else first_chunk_s * characters_per_second,
    )
    speaker.check(chunks[0].text, preset)
    store = None
    if work_dir is not None:
        settings = {
            "voice": None if preset is None else preset_digest(preset),
            "carry_voice": carry_voice,
            "seed": seed,
            "stream": policy if stream else None,
            **({} if speed is None else {_SPEED: asdict(speed)}),
            "generation arguments": plain,
            "model": model_digest(model),
            "float32 sums": _float32_sums(model),
        }
        store = ChunkStore(Path(work_dir), settings, [chunk.text for chunk in chunks])
    options = LongTextOptions(seed, batch_size, carry_voice, stream, paragraph_pause_s, chunk_pause_s, on_progress)
    return LongForm(speaker, chunks, preset, options, store)


def model_digest(model: BarkModel) -> str:
    """The same for models that say the same: configs, what `accelerate_bark` was asked for, a sample of the weights."""
    owner = owner_of(model.generate, ModelPatch)
    asked = None if owner is None else _asked(owner.settings)
    settings: Any = model.generation_config
    facts = [_facts(model.config.to_dict()), _facts(settings.to_dict()), asked]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for tensor in (*model.parameters(), *model.buffers(), *_released(model)):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        values = tensor.detach().flatten()
        sample = values[:: max(1, math.ceil(values.numel() / _SAMPLED_VALUES))]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _asked(settings: Settings) -> list[Any]:
    """Name the settings that change what is said."""
    windows = [name for name in ("fit_windows", "long_coarse_windows") if getattr(settings, name)]
    cache = [] if settings.kv_cache_dtype == "auto" else [f"kv_cache_dtype={settings.kv_cache_dtype}"]
    return [settings.precision, sorted(settings.stock_bugs.fixed), *windows, *cache]


def _float32_sums(model: BarkModel) -> str | None:
    """Name who computes float32 blocks of tokens and the codec on a CPU: each adds in another order."""
    owner, device = owner_of(model.generate, ModelPatch), device_of(model)
    if owner is None:
        return None
    if owner.settings.compiler is not None:
        return f"compiled by {owner.settings.compiler.backend}"
    if device.type != "cpu":
        return None
    chosen, codec = owner.float32_choice(), f"codec {owner.codec_patch().ops_name(device)}"
    return codec if chosen is None else f"products {chosen.products}, attention {chosen.attention}, {codec}"


def _stream_speed(model: BarkModel, work_dir: str | Path | None) -> StreamSpeed | None:
    """Return the speed by which streams are planned: that of the folder's run, else this machine's now."""
    owner = owner_of(model.generate, ModelPatch)
    if owner is None or not owner.settings.fit_windows or device_of(model).type != "cpu":
        return None
    kept = None if work_dir is None else kept_setting(Path(work_dir), _SPEED)
    return stream_speed(model) if kept is None else StreamSpeed(**kept)


def _facts(config: Any) -> Any:
    """Return a config without where it was read from and which Transformers wrote it."""
    if not isinstance(config, dict):
        return config
    return {k: _facts(v) for k, v in config.items() if not str(k).startswith("_") and k != "transformers_version"}


def _released(model: BarkModel) -> Iterator[Tensor]:
    """The weights of sub-models that gave up their own."""
    for submodel in submodels(model).values():
        patch = owner_of(submodel.generate, StagePatch)
        if patch is not None and patch.released is not None:
            yield from tensors_of(patch.released)


def _batch_size(given: object, *, one_by_one: bool) -> int:
    if given is None:
        return 1 if one_by_one else _DEFAULT_BATCH_SIZE
    given = whole_number("batch_size", given, 1)
    if one_by_one and given > 1:
        raise ValueError(f"batch_size: expected 1 with carry_voice or stream, which go chunk by chunk, got {given}")
    return given


def _check_numbers(
    max_chunk_s: float,
    first_chunk_s: float | None,
    characters_per_second: float,
    paragraph_pause_s: float,
    chunk_pause_s: float,
) -> None:
    first = {} if first_chunk_s is None else {"first_chunk_s": first_chunk_s}
    lengths = {"max_chunk_s": max_chunk_s, **first}
    for name, value in (*lengths.items(), ("characters_per_second", characters_per_second)):
        if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    for name, value in lengths.items():
        if (characters := value * characters_per_second) < 1:
            raise ValueError(
                f"{name} * characters_per_second: expected at least 1 character a chunk, got {characters:g}"
            )
    for name, value in (("paragraph_pause_s", paragraph_pause_s), ("chunk_pause_s", chunk_pause_s)):
        if not (isinstance(value, numbers.Real) and 0 <= value < math.inf):
            raise ValueError(f"{name}: expected seconds >= 0, got {value!r}")


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(arguments, default=_number))
    except TypeError as error:
        raise ValueError(
            f"work_dir: expected generation arguments that a later run can compare (numbers, strings, lists), {error}"
        ) from None


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got {type(value).__name__}")
