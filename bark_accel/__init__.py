"""Makes Transformers' Bark fast: the same tokens for the same seed.

from bark_accel import accelerate_bark, stream

model = accelerate_bark(BarkModel.from_pretrained("suno/bark-small"))
audio = model.generate(**inputs)  # as before
for chunk in stream(model, **inputs):  # or while it is generated
    play(chunk)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import BarkModel, BarkProcessor, BatchFeature

    from bark_accel.longform.reader import LongForm, SpokenChunk
    from bark_accel.stages.ragged import trim_rows
    from bark_accel.streaming.streamer import AudioStreamer, stream
    from bark_accel.voices.preset import load_voice_preset, save_voice_preset

    from .report import AccelerationError, AccelerationReport, FallbackKind, FallbackReason, StageReport
    from .small_bark import small_bark_path

# Imported when they are first used: torch takes more than a second, and `bark-accel --help` needs none of it.
_LAZY = {
    "AccelerationError": "report",
    "AccelerationReport": "report",
    "AudioStreamer": "streaming.streamer",
    "FallbackKind": "report",
    "FallbackReason": "report",
    "LongForm": "longform.reader",
    "SpokenChunk": "longform.reader",
    "StageReport": "report",
    "load_voice_preset": "voices.preset",
    "save_voice_preset": "voices.preset",
    "small_bark_path": "small_bark",
    "stream": "streaming.streamer",
    "trim_rows": "stages.ragged",
}

__all__ = [
    "AccelerationError",
    "AccelerationReport",
    "AudioStreamer",
    "FallbackKind",
    "FallbackReason",
    "LongForm",
    "SpokenChunk",
    "StageReport",
    "accelerate_bark",
    "acceleration_report",
    "batch_inputs",
    "free_memory",
    "generate_with_preset",
    "load_voice_preset",
    "long_form",
    "restore_bark",
    "save_voice_preset",
    "small_bark_path",
    "stream",
    "trim_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def accelerate_bark(
    model: BarkModel,
    *,
    weights: str = "same",
    backend: str = "auto",
    strict: bool = False,
    speculate: bool | None = None,
    release_originals: bool = False,
    fix_stock_bugs: bool | Iterable[str] = False,
    cuda_graphs: bool = True,
    attention: str = "sdpa",
) -> BarkModel:
    """Make one `BarkModel` instance generate faster, in place.

    `model.generate`, `model.codec_decode` and the `generate` of its sub-models keep their signatures and, in float32,
    their results: the same tokens for the same seed. In float16 and bfloat16 the results are at least as close to
    float32 as Transformers' own. `history_prompt` may also be a list with a voice preset (or None) for each row, which
    is then as if generated alone, and `trim=True` returns a list of rows. Nothing but this instance changes. Calling it
    again applies the new arguments.

    Parameters
    ----------
    model : BarkModel
        On any device; float32, float16 or bfloat16.
    weights : {"same", "float16", "bfloat16", "int8"}
        Precision of the matrices: the model's own, or a smaller one, which is faster and changes the result: the
        smaller copies stand beside the model's own weights.
    backend : {"auto", "native", "torch"}
        `"native"` uses the compiled ops (CPU, or CUDA where they were built for it), `"torch"` plain torch on any
        device, `"auto"` the compiled ops where they exist. At first use on a GPU they are compared with plain torch
        (a fraction of a second); where they differ, `"auto"` runs plain torch there, with a warning and a line in the
        report.
    strict : bool
        Raise `AccelerationError` where a call would otherwise fall back to Transformers' own code.
    speculate : bool, optional
        Draft tokens with an int8 copy of the model and verify several at once with the model itself, for batches of
        one row. The tokens stay the same. None: where it pays, on a CPU with weights other than int8, unless
        `release_originals` asks for little memory.
    release_originals : bool
        Free the transformers' own weights and keep only the smaller ones (16-bit embedding tables included). For good:
        `restore_bark`, `state_dict` and Transformers' own code raise from then on, as with `strict`.
    fix_stock_bugs : bool or iterable of str
        Bugs of Transformers' Bark to fix, all or by name; otherwise they are kept. `acceleration_report(model)` lists
        the names, `bark_accel.patches.stock_bugs.STOCK_BUGS` says what each one is.
    cuda_graphs : bool
        On an NVIDIA GPU, replay the decode step of the two causal stages as a CUDA graph; captured when a batch size,
        sampling option or place of the weights is new, and kept. The tokens stay the same. Without effect on other
        devices, and where `speculate` drafts.
    attention : {"sdpa", "flash_attn"}
        Of blocks of tokens (prompts, the fine stage) with weights of 16 bits or fewer on an NVIDIA GPU: torch's own,
        or the `flash-attn` package's.

    Returns
    -------
    BarkModel
        The same object.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`, or a flag is not a bool.
    ValueError
        A model on the meta device, quantised by another library, of mixed or other dtypes, or already patched by
        somebody else, or with released weights; an unknown `weights`, `backend` or `attention`, or an unknown name in
        `fix_stock_bugs`; `speculate=True` with int8 weights; `release_originals` with weights "same", in training mode
        or with hooked modules; weights of 16 bits or fewer with heads of more than 256 numbers; an `attention` that is
        of no use for this model.
    RuntimeError
        `backend="native"` for a GPU on which the compiled ops differ from plain torch.
    ImportError
        The compiled library is missing or was built for another torch; this version of Transformers has other
        signatures than the ones tested; or `flash-attn` was asked for and is missing.
    """
    from bark_accel.patches.api import apply

    return apply(
        model,
        weights=weights,
        backend=backend,
        strict=strict,
        speculate=speculate,
        release_originals=release_originals,
        fix_stock_bugs=fix_stock_bugs,
        cuda_graphs=cuda_graphs,
        attention=attention,
    )


def restore_bark(model: BarkModel) -> BarkModel:
    """Undo `accelerate_bark` exactly: afterwards the instance has no trace of it.

    A model that is not accelerated is returned as it is.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        Its weights were released, or somebody else patched it.
    """
    from bark_accel.patches.api import remove

    return remove(model)


def acceleration_report(model: BarkModel) -> AccelerationReport:
    """Say what runs accelerated on this model, what fell back so far, and why.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        `model` is not accelerated.
    """
    from bark_accel.patches.api import report

    return report(model)


def free_memory(model: BarkModel) -> int:
    """Give up what an accelerated model keeps between calls and makes again when it needs it.

    The key/value cache (of the largest batch so far), captured CUDA graphs, copies of the weights in other precisions
    (drafts, and those of `weights=`; not what `release_originals` left), and the CPU ops' scratch memory. The next call
    is slower by the time that the copies and graphs take; its result is the same. Generations that are running keep
    what they have. On a GPU the memory goes back to torch's allocator: `torch.cuda.empty_cache()` gives it to others.

    Parameters
    ----------
    model : BarkModel
        Accelerated.

    Returns
    -------
    int
        Bytes that were freed, those of CUDA graphs not counted.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        `model` is not accelerated.
    """
    from .patches.api import free_memory

    return free_memory(model)


def batch_inputs(processor: BarkProcessor, texts: Iterable[str], voices: Any) -> BatchFeature:
    """Prepare texts with a voice each: `model.generate(**batch_inputs(processor, texts, voices))`.

    Parameters
    ----------
    processor : BarkProcessor
        Takes one voice a call itself.
    texts : iterable of str
        A list, an array, a column of a table, a generator.
    voices : iterable of as many, or one for all rows
        Each the name of one of the processor's voices, the path of an .npz file, a voice preset (a mapping of arrays
        or tensors), or None for no voice; so are "" and NaN, as empty fields of a table are read.

    Returns
    -------
    BatchFeature
        `input_ids` and `attention_mask` [B, 256], and `history_prompt`, a list of B voice presets (those that were
        loaded as int64 tensors). `to(device)` moves them, in place. An accelerated model moves them itself, but where
        its semantic stage falls back to Transformers' code.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    """
    from bark_accel.hf.voices import batch_inputs

    return batch_inputs(processor, texts, voices)


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
    characters_per_second: float | None = None,
    paragraph_pause_s: float = 0.75,
    chunk_pause_s: float = 0.25,
    on_progress: Callable[[int, int], None] | None = None,
    **generate_kwargs: Any,
) -> LongForm:
    """Say a text of any length: sentences packed into chunks that Bark can say, generated in order.

    The chunks are planned here; iterating over the result generates them. Each draws from a seed of its own, so that
    they do not depend on how often a run was interrupted.

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
        Of the random numbers, which are drawn from torch's default generator: it is left as it was, but what other
        threads draw from it meanwhile changes the audio.
    batch_size : int, optional
        Chunks generated at once; part of what decides the audio. Each needs another key-value cache (72 MiB with
        bark-small in float32, 192 MiB with bark). None: 4, or 1 with `carry_voice` or `stream`.
    stream : bool
        Give each chunk's audio out while it is generated, as an `AudioStreamer` does. Until the chunk has ended,
        torch's default generator is the generation's.
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
    from bark_accel.patches.speaker import make_long_form

    return make_long_form(
        model,
        processor,
        text,
        voice=voice,
        carry_voice=carry_voice,
        seed=seed,
        batch_size=batch_size,
        stream=stream,
        policy=policy,
        work_dir=work_dir,
        language=language,
        max_chunk_s=max_chunk_s,
        characters_per_second=characters_per_second,
        paragraph_pause_s=paragraph_pause_s,
        chunk_pause_s=chunk_pause_s,
        on_progress=on_progress,
        arguments=generate_kwargs,
    )


def generate_with_preset(model: BarkModel, **generate_kwargs: Any) -> tuple[Tensor, dict[str, np.ndarray] | None]:
    """Generate one utterance, and the voice preset that its own codes make.

    Parameters
    ----------
    model : BarkModel
        Accelerated or not.
    generate_kwargs
        What `model.generate` takes, for one row, but for `return_output_lengths` and `trim`.

    Returns
    -------
    audio : Tensor
        [1, S], as `model.generate` returns it.
    preset : dict, optional
        Arrays of int64 for `save_voice_preset` or as `history_prompt`; None with a streamer of policy "preview".

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        More than one row, or one of those arguments.
    """
    from bark_accel.hf.presets import generate_with_presets

    taken = generate_kwargs.keys() & {"return_output_lengths", "trim"}
    if taken:
        raise ValueError(f"{min(taken)}: expected no such argument, there is one row and it has no padding")
    rows = len(generate_kwargs.get("input_ids", ()))
    if rows != 1:
        raise ValueError(f"input_ids: expected one row, got {rows}")
    audio, _, (preset,) = generate_with_presets(model, **generate_kwargs)
    return audio, preset
