"""Makes Transformers' Bark fast: the same tokens for the same seed.

from bark_accel import accelerate_bark, stream

model = accelerate_bark(BarkModel.from_pretrained("suno/bark-small"))
audio = model.generate(**inputs)  # as before
for chunk in stream(model, **inputs):  # or while it is generated
    play(chunk)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .report import AccelerationError, AccelerationReport, FallbackKind, FallbackReason, StageReport
from .rows import trim_rows
from .streamer import AudioStreamer, stream

if TYPE_CHECKING:
    from transformers import BarkModel, BarkProcessor

__version__ = "0.1.0"

__all__ = [
    "AccelerationError",
    "AccelerationReport",
    "AudioStreamer",
    "FallbackKind",
    "FallbackReason",
    "StageReport",
    "accelerate_bark",
    "acceleration_report",
    "batch_inputs",
    "restore_bark",
    "stream",
    "trim_rows",
]


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
        device, `"auto"` the compiled ops where they exist.
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
        the names, `bark_accel.patches.traps.STOCK_BUGS` says what each one is.
    cuda_graphs : bool
        On an NVIDIA GPU, replay the decode step of the two causal stages as a CUDA graph, for up to 16 rows; recorded
        when a batch size, sampling option or place of the weights is new, and kept. The tokens stay the same.
        Without effect on other devices, and where `speculate` drafts.
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
    ImportError
        The compiled library is missing or was built for another torch; this version of Transformers has other
        signatures than the ones tested; or `flash-attn` was asked for and is missing.
    """
    from .patches import apply

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
    from .patches import remove

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
    from .patches import report

    return report(model)


def batch_inputs(processor: BarkProcessor, texts: Sequence[str], voices: Sequence[Any]) -> dict[str, Any]:
    """Prepare texts with a voice each: `model.generate(**batch_inputs(processor, texts, voices))`.

    Parameters
    ----------
    processor : BarkProcessor
        Takes one voice a call itself.
    texts : sequence of str
    voices : sequence of as many
        Each the name of one of the processor's voices, the path of an .npz file, a voice preset (a mapping of arrays
        or tensors), or None for no voice.

    Returns
    -------
    dict
        `input_ids` and `attention_mask` [B, 256], and `history_prompt`, a list of B voice presets. An accelerated
        model moves them to its device.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    """
    from .patches.voices import batch_inputs

    return batch_inputs(processor, texts, voices)
