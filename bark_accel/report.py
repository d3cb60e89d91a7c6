"""Report of what runs accelerated, what fell back to Transformers, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

logger = logging.getLogger("bark_accel")


class FallbackKind(Enum):
    """Why a stage ran Transformers' own code."""

    TRAINING = "the module is in training mode"
    AUTOCAST = "autocast is on"
    GRADIENTS = "gradients were asked for"
    HOOKED_MODULE = "a module has hooks (offloading, or the user's own)"
    REPLACED_MODULE = "a module is not the one Transformers builds"
    DTYPE = "the weights are not all of one supported dtype"
    DEVICE = "the weights are not all on one device"
    GENERATION_MODE = "not greedy search or sampling"
    EXTRA_OUTPUTS = "more than the tokens was asked for"
    LOGITS_PROCESSOR = "a logits processor that the fused sampler does not have"
    STOPPING_CRITERIA = "a stopping criterion beside the length and the end of speech"
    HEAD_SIZE = "heads that are too large for weights of 16 bits or fewer"
    ARGUMENTS = "an argument that the loop does not have"
    TOKEN_LAYOUT = "an unusual token layout"
    CODEC_ARCHITECTURE = "a codec other than Bark's EnCodec"


@dataclass(frozen=True)
class FallbackReason:
    """One reason, for one stage (`semantic`, `coarse`, `fine`, `codec` or `model`)."""

    stage: str
    kind: FallbackKind
    detail: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind.value}: {self.detail}"


class Fallback(Exception):
    """Raised while a call is being prepared, before any random number is drawn."""

    def __init__(self, stage: str, kind: FallbackKind, detail: str):
        self.reason = FallbackReason(stage, kind, detail)
        super().__init__(str(self.reason))


class TokenChoice(Fallback):
    """Raised where only the choice of the token is not ours: Transformers' own loop makes it, over our steps.

    Noted, not raised, where our loop calls Transformers' logits processors.
    """


T = TypeVar("T")


def attempt(prepare: Callable[[], T]) -> T | Fallback:
    """Return what `prepare` does, or the `Fallback` that it raised, so that nothing runs inside of an except block."""
    try:
        return prepare()
    except Fallback as fallback:
        return fallback


class AccelerationError(RuntimeError):
    """Raised in place of Transformers' own code, which `strict=True` or another option rules out."""

    def __init__(self, reason: FallbackReason):
        super().__init__(
            "bark_accel cannot run this accelerated, and strict=True, long_coarse_windows=True or "
            f"release_originals=True rules out Transformers' own code: {reason}"
        )
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


@dataclass
class FallbackLog:
    """Collects the reasons of one model; each is logged once."""

    strict: bool
    reasons: list[FallbackReason] = field(default_factory=list)
    choices: list[FallbackReason] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)

    def record(self, reason: FallbackReason) -> None:
        """Keep and log `reason`, or raise `AccelerationError` when strict."""
        if self.strict:
            raise AccelerationError(reason)
        if reason not in self.reasons:
            self.reasons.append(reason)
            logger.warning("bark_accel runs Transformers' own code: %s", reason)

    def note_unneeded(self, options: Iterable[str]) -> None:
        """Keep options that were taken, and that change nothing here."""
        self.unneeded += [option for option in options if option not in self.unneeded]

    def note(self, fallback: Fallback) -> None:
        """`record` a fallback; keep and log a choice of tokens, which is none."""
        reason = fallback.reason
        if not isinstance(fallback, TokenChoice):
            self.record(reason)
        elif reason not in self.choices:
            self.choices.append(reason)
            logger.info("bark_accel runs its own steps, and the tokens are chosen otherwise: %s", reason)


@dataclass
class DraftCounts:
    """Counts of drafted and of accepted tokens."""

    rounds: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class StageReport:
    """One stage: where it runs and what its weights are, or why it cannot be accelerated as it is now.

    `dtype` is the module's, `weights` the precision of the matrices that a generation uses, `copied_bytes` what is held
    beside the module's own tensors; `drafts` counts speculation so far, None where a stage has none.
    """

    stage: str
    ops: str
    dtype: str
    device: str
    copied_bytes: int
    weights: str
    drafts: DraftCounts | None = None
    blocked_by: FallbackReason | None = None


@dataclass(frozen=True)
class CompiledPart:
    """A part of the model for inputs of one shape, compiled by a backend of `torch.compile` (`compile_backend`).

    `first_call_s` has compiling, one run and its check in it. Results of calls 1, 2, 4, 8, ... are compared with plain
    torch's: `error` is the largest difference so far, in parts of the largest number, and `limit` what the precision of
    the weights allowed there.
    """

    name: str
    backend: str
    first_call_s: float
    error: float
    limit: float

    def __str__(self) -> str:
        figures = f"first call {self.first_call_s:.1f} s, error {self.error:.1e} of {self.limit:.1e} allowed"
        return f"{self.name}, by {self.backend}: {figures}"


@dataclass(frozen=True)
class AccelerationReport:
    """Result of `acceleration_report`; `str()` of it is a table.

    Attributes
    ----------
    stages : tuple of StageReport
        From text to sound.
    fallbacks : tuple of FallbackReason
        Those that generations so far ran into.
    token_choices : tuple of FallbackReason
        Why Transformers' own loop chose tokens from the logits of our steps, or which of its or the caller's
        processors our loop called.
    unneeded_options : tuple of str
        Options of how stock computes, which were taken and change nothing here, each with its stage
        (`"coarse: use_cache=False"`).
    backend, strict, fit_windows, long_coarse_windows, kv_cache_dtype, compile_backend
        As in `accelerate_bark`.
    isa : str or None
        Instruction set of the compiled ops, None where they are not used.
    threads : int
        torch's.
    kv_cache_bytes : int
        Of the caches that are kept between calls.
    cuda_graphs : bool
        False also where the device has none.
    captured_graphs : int
        CUDA graphs that are kept between calls.
    attention : str
        Of 16-bit blocks of tokens on a GPU.
    float32 : str or None
        Who computes float32 products, attention and convolutions on a CPU, and where that was decided; None where
        there are none.
    versions : dict
        Of `bark_accel`, `torch` and `transformers`, by these names.
    stock_bugs : dict
        Names that `accelerate_bark(fix_stock_bugs=)` takes, each with whether it is fixed.
    native_fault : str or None
        Why plain torch ops run on a GPU that the compiled ones are made for: how they differed from torch's when they
        were compared at first use there; None where they did not.
    decode_step : str
        Which kernels a token's step runs on, and why.
    fine_window : str
        How the fine stage's passes are launched.
    capture_faults : tuple of str
        Why something that should be a CUDA graph is none.
    given_up_steps : tuple of str
        Why steps of another kind than graphs of kernels (`BARK_ACCEL_CUDA_STEP`) are not used.
    compiled_parts : tuple of CompiledPart
        Those compiled so far.
    """

    stages: tuple[StageReport, ...]
    fallbacks: tuple[FallbackReason, ...]
    token_choices: tuple[FallbackReason, ...]
    unneeded_options: tuple[str, ...]
    backend: str
    strict: bool
    isa: str | None
    threads: int
    kv_cache_bytes: int
    cuda_graphs: bool
    captured_graphs: int
    attention: str
    float32: str | None
    versions: dict[str, str]
    stock_bugs: dict[str, bool]
    native_fault: str | None = None
    fit_windows: bool = False
    long_coarse_windows: bool = False
    kv_cache_dtype: str = "auto"
    decode_step: str = ""
    fine_window: str = ""
    capture_faults: tuple[str, ...] = ()
    given_up_steps: tuple[str, ...] = ()
    compile_backend: str | None = None
    compiled_parts: tuple[CompiledPart, ...] = ()

    def __str__(self) -> str:
        header = ("stage", "ops", "dtype", "weights", "device", "copied", "drafts accepted")
        rows = [
            (s.stage, s.ops, s.dtype, s.weights, s.device, _mib(s.copied_bytes), _drafts(s.drafts)) for s in self.stages
        ]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (header, *rows)]
        lines.insert(1, "  ".join("-" * w for w in widths))
        s = "" if self.threads == 1 else "s"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines.append(f"backend {self.backend}, strict {self.strict}, isa {self.isa}, {self.threads} thread{s}")
        lines.append(f"float32 blocks: {self.float32 or 'none on a CPU'}")
        lines.append(f"decode step: {self.decode_step}")
        lines.append(self._on_gpu())
        lines.append(f"kv cache kept: {_mib(self.kv_cache_bytes)}; {versions}")
        fixed, kept = ([n for n, is_fixed in self.stock_bugs.items() if is_fixed is which] for which in (True, False))
        lines.append(f"stock's bugs fixed: {', '.join(fixed) or 'none'}; kept: {', '.join(kept) or 'none'}")
        lines += [f"not captured, kernel by kernel: {fault}" for fault in self.capture_faults]
        lines += [f"given up, graphs of kernels instead: {fault}" for fault in self.given_up_steps]
        if self.native_fault is not None:
            lines.append(f"compiled ops not used, they are wrong here: {self.native_fault}")
        if self.compile_backend is not None:
            lines.append(f"compile backend: {self.compile_backend}, {len(self.compiled_parts)} parts so far")
            lines += [f"compiled: {part}" for part in self.compiled_parts]
        if self.fit_windows:
            lines.append("fine windows end with the speech: other fine codes than Transformers'")
        if self.long_coarse_windows:
            lines.append("coarse windows end when they are full: other coarse tokens than Transformers'")
        if self.kv_cache_dtype == "int8":
            lines.append("keys and values of 8 bits: other semantic and coarse tokens than Transformers'")
        lines += [f"blocked: {s.blocked_by}" for s in self.stages if s.blocked_by is not None]
        lines += [f"our steps, tokens chosen otherwise: {reason}" for reason in self.token_choices]
        lines += [f"without effect here: {option}" for option in self.unneeded_options]
        lines += [f"fell back: {reason}" for reason in self.fallbacks] or ["fell back: never"]
        return "\n".join(lines)

    def _on_gpu(self) -> str:
        if not any(stage.device.startswith("cuda") for stage in self.stages):
            return "cuda graphs: no effect, the model is not on an NVIDIA GPU"
        graphs = f"on, {self.captured_graphs} captured" if self.cuda_graphs else "off"
        return f"fine window: {self.fine_window}\ncuda graphs: {graphs}; attention {self.attention}"


def _drafts(counts: DraftCounts | None) -> str:
    if counts is None or counts.drafted_tokens == 0:
        return "-"
    return f"{counts.accepted_tokens} of {counts.drafted_tokens}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
