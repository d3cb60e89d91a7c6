"""Patches one `BarkModel` instance, and restores it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import BarkModel

from bark_accel import _cpus
from bark_accel._arguments import check_flags
from bark_accel._caller import warn_caller
from bark_accel._forked import avoid_lost_threads, watch
from bark_accel.hf.compat import check_signatures, warn_of_untested
from bark_accel.hf.inputs import check_not_meta
from bark_accel.hf.offload import device_of
from bark_accel.hf.points import POINTS, submodels
from bark_accel.ops._library import release_memory
from bark_accel.ops.backend import check_backend, runs_natively
from bark_accel.ops.flash_attention import check_attention
from bark_accel.report import FallbackLog
from bark_accel.transformer.dynamo import Compiler, check_compile_backend
from bark_accel.transformer.kv_cache import KV_CACHE_DTYPES
from bark_accel.transformer.precision import INT8_WEIGHTS, WEIGHTS

from .model import ModelPatch
from .model_checks import check_classes, check_extractable, check_not_covered
from .patched import METHODS, accelerated_patch, all_submodels, check_model, is_ours, model_patch, stage_patches
from .points import PATCHES
from .release import check_released, release
from .reporting import isa
from .stage_patch import Settings
from .stock_bugs import StockBugs


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
    fit_windows: bool = False,
    long_coarse_windows: bool = False,
    compile_backend: str | None = None,
    kv_cache_dtype: str = "auto",
) -> BarkModel:
    """Make one `BarkModel` instance generate faster, in place.

    `model.generate`, `model.codec_decode` and the `generate` of its sub-models keep their signatures and, in float32,
    their results: the same tokens for the same seed. In float16 and bfloat16 the results are at least as close to
    float32 as Transformers' own. `history_prompt` may also be a list with a voice preset (or None) for each row, which
    is then as if generated alone, and `trim=True` returns a list of rows. Nothing but this instance changes. Calling it
    again applies the new arguments.

    `model.generate(..., progress=True)` shows a bar (`tqdm.auto`) for each part of the work, as text or in a notebook;
    with a function, `progress(part, done, most)` is called in the generating thread: `"semantic"` and `"coarse"` count
    tokens, `"sound"` (the fine stage and the codec) frames; `most` is the limit at first, and exact once the part
    before has ended. What it raises ends the generation. The tokens stay the same. Stock's `generate` refuses
    `progress` and `trim` as arguments that it does not know.

    Parameters
    ----------
    model : BarkModel
        On any device; float32, float16 or bfloat16.
    weights : {"same", "float16", "bfloat16", "int8", "w8a8"}
        Precision of the matrices: the model's own, or a smaller one, which is faster and changes the result: the
        smaller copies stand beside the model's own weights. `"w8a8"` is `"int8"` with activations of 8 bits too in
        prompts and the fine stage: faster on a CPU, and in the fine stage half again as far from float32.
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
        Attention of blocks of tokens (prompts, the fine stage) with weights of 16 bits or fewer on an NVIDIA GPU:
        torch's own, or that of the package `flash-attn`.
    fit_windows : bool
        Approximate: end a fine window 8 to 71 frames after its last frame (a multiple of 64), instead of computing 1024
        frames for any utterance; of a model with other windows, the same part of them. The fine codes (not the semantic
        and coarse ones) are other than stock's. Without effect on utterances that fill a window, voice preset included,
        and where Transformers' own code runs.
    long_coarse_windows : bool
        Approximate: a coarse window goes on for as many of stock's as the model's positions have room for (120 to 720
        tokens of suno's models), instead of opening one, with a prompt of up to 887 tokens, every 60 tokens. Semantic
        tokens are stock's; coarse ones are stock's up to the first prompt that is left out. What only Transformers' own
        code could do of the coarse stage raises `AccelerationError`. `bark_accel.suno` has `sliding_window_len`
        instead.
    compile_backend : str, optional
        A backend of `torch.compile` for the dense parts (prompts, windows of the fine stage, the codec's upsampling of
        a whole waveform) instead of our own kernels: `"inductor"`, `"tensorrt"`, `"openvino"`, `"openxla"`, or any name
        that is registered with torch. Every other step stays ours. A program is compiled for each length at its first
        use, in tens of seconds, and compared with plain torch in its calls 1, 2, 4, 8, ...: float32 has to agree to
        2e-5 of the largest number, 16-bit weights must be no further from float32 than twice what torch is with them.
        Otherwise the call raises `RuntimeError`.
    kv_cache_dtype : {"auto", "int8"}
        Approximate, for CPUs: what attention remembers of the tokens so far, in the two causal stages. `"auto"` is the
        products' dtype (float16 beside int8 weights). `"int8"` rounds each key and value of a head to 8 bits with a
        scale of its own: 53 % of float16's memory, and faster steps, of many rows and long contexts above all. The
        tokens are other than without it.

    Returns
    -------
    BarkModel
        The same object.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`, a flag is not a bool, or `compile_backend` no string.
    ValueError
        A model on the meta device, quantised by another library, of mixed or other dtypes, or already patched by
        somebody else, or with released weights; an unknown `weights`, `backend` or `attention`, or an unknown name in
        `fix_stock_bugs`; `speculate=True` with int8 weights; `release_originals` with weights "same", in training mode
        or with hooked modules; weights of 16 bits or fewer with heads of more than 256 numbers; an `attention` that is
        of no use for this model; a `compile_backend` that nobody has registered, or one with int8 weights; an unknown
        `kv_cache_dtype`, or `"int8"` for a model that is not on the CPU.
    RuntimeError
        `backend="native"` for a GPU on which the compiled ops differ from plain torch.
    ImportError
        The compiled library is missing or was built for another torch; this version of Transformers has other
        signatures than the ones tested; or `flash-attn`, or what `compile_backend` needs, was asked for and is missing.
    """
    watch()
    avoid_lost_threads()
    check_model(model)
    check_flags(strict=strict, release_originals=release_originals, cuda_graphs=cuda_graphs)
    check_flags(fit_windows=fit_windows, long_coarse_windows=long_coarse_windows)
    if not (speculate is None or isinstance(speculate, bool)):
        raise TypeError(f"speculate: expected None, True or False, got {speculate!r}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights: expected one of {', '.join(map(repr, WEIGHTS))}, got {weights!r}")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        expected = ", ".join(map(repr, KV_CACHE_DTYPES))
        raise ValueError(f"kv_cache_dtype: expected one of {expected}, got {kv_cache_dtype!r}")
    stock_bugs = StockBugs(fix_stock_bugs)
    check_classes(model)
    check_not_covered(model)
    check_not_meta(model)
    for submodel in all_submodels(model):
        check_released(submodel)
    check_signatures()
    device = device_of(model)
    if kv_cache_dtype == "int8" and device.type != "cpu":
        raise ValueError(f"kv_cache_dtype='int8': expected a model on the CPU, got one on {device}; use 'auto' there")
    check_backend(backend, device)
    if speculate and weights in INT8_WEIGHTS:
        raise ValueError(f"speculate: expected None or False with weights={weights!r} (the drafts are int8), got True")
    if release_originals and weights == "same":
        raise ValueError(
            f"release_originals: expected weights of {', '.join(map(repr, WEIGHTS[1:]))} with it, got 'same'"
        )
    check_attention(attention, device, exact=weights == "same" and model.dtype == torch.float32)
    compiler = _compiler(compile_backend, weights, device)
    log = FallbackLog(strict or release_originals)
    settings = Settings(
        backend,
        log,
        weights,
        speculate,
        release_originals,
        stock_bugs,
        cuda_graphs,
        attention,
        fit_windows,
        long_coarse_windows,
        compiler,
        kv_cache_dtype,
    )
    whole = ModelPatch(model, settings)
    patches = {stage: PATCHES[stage](submodel, settings) for stage, submodel in submodels(model).items()}
    for patch in (whole.codec_patch(), *patches.values()):
        check_extractable(patch, also_transient=release_originals)
    if release_originals:
        release([*patches.values()])
    warn_of_untested()
    _warn_of_slow_weights(weights, backend, device)
    if device.type == "cpu":
        _warn_of_threads()
    _remove_patches(model)
    by_stage = {"model": whole, "codec": whole, **patches}
    for stage, point in POINTS.items():
        vars(point.owner(model))[point.method] = getattr(by_stage[stage], point.method)
    return model


def _compiler(backend: str | None, weights: str, device: torch.device) -> Compiler | None:
    if backend is None:
        return None
    check_compile_backend(backend, device)
    if weights in INT8_WEIGHTS:
        raise ValueError(
            f"compile_backend={backend!r}: expected weights of 'same', 'float16' or 'bfloat16' with it, got "
            f"{weights!r} (int8 weights are laid out for our own kernels)"
        )
    return Compiler(backend)


def restore_bark(model: BarkModel) -> BarkModel:
    """Undo `accelerate_bark` exactly: afterwards the instance has no trace of it.

    A model that is not accelerated is returned as it is.

    Parameters
    ----------
    model : BarkModel
        Accelerated or not.

    Returns
    -------
    BarkModel
        The same object.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        Its weights were released, or somebody else patched it.
    """
    check_model(model)
    if model_patch(model) is None:
        return model
    check_not_covered(model)
    for submodel in all_submodels(model):
        check_released(submodel)
    _remove_patches(model)
    return model


def _remove_patches(model: BarkModel) -> None:
    for owner in (model, *all_submodels(model)):
        for name in METHODS:
            if is_ours(vars(owner).get(name)):
                delattr(owner, name)


def free_memory(model: BarkModel) -> int:
    """Give up what an accelerated model keeps between calls and makes again when it needs it.

    The key/value cache (of the largest batch so far), captured CUDA graphs, copies of the weights in other precisions
    (drafts, and those of `weights=`; not what `release_originals` left), the codec's folded weights, and the CPU ops'
    scratch memory. The next call is slower by the time that the copies and graphs take; its result is the same.
    Generations that are running keep what they have. On a GPU the memory goes back to torch's allocator:
    `torch.cuda.empty_cache()` gives it to others.

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
    avoid_lost_threads()
    patch = accelerated_patch(model, "free_memory")
    stages = [*stage_patches(model), patch.codec_patch()]
    freed = patch.settings.pool.clear() + sum(stage.free_memory() for stage in stages)
    return freed + (release_memory() if runs_natively(patch.settings.backend, device_of(model)) else 0)


def _warn_of_slow_weights(weights: str, backend: str, device: torch.device) -> None:
    if weights != "same" and device.type == "cpu" and runs_natively(backend, device) and isa() == "generic":
        warn_caller(
            f"bark_accel: weights={weights!r} saves memory but no time here: it is slower than float32 with the "
            "generic kernels, which run where a CPU has no AVX2 or BARK_ACCEL_ISA says so"
        )


def _warn_of_threads() -> None:
    threads, quota = torch.get_num_threads(), _cpus.cpu_quota()
    usable = threads if quota is None else max(1, math.ceil(quota))
    if threads > usable:
        warn_caller(
            f"bark_accel: torch has {threads} threads, and this process's control group may use {quota:g} "
            f"CPU{'' if quota == 1 else 's'}: threads that it stops are waited for; torch.set_num_threads({usable}) is "
            "faster"
        )
