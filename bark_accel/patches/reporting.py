"""Reports what runs accelerated on a model, and what fell back."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers
from transformers import BarkModel

from bark_accel._version import __version__
from bark_accel.decoding.cuda_graphs import graphs_are_on
from bark_accel.hf.offload import device_of
from bark_accel.ops.backend import is_served, native_fault, runs_natively
from bark_accel.report import AccelerationReport, Fallback, FallbackReason, StageReport

from .fine import FinePatch
from .patched import accelerated_patch, stage_patches
from .stage_patch import CausalPatch, Settings, StagePatch
from .step_kind import step_kind, window_kind
from .stock_bugs import STOCK_BUGS


def acceleration_report(model: BarkModel) -> AccelerationReport:
    """Say what runs accelerated on this model, what fell back so far, and why.

    Parameters
    ----------
    model : BarkModel
        Accelerated.

    Returns
    -------
    AccelerationReport
        As of now; `print` shows it as a table.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        `model` is not accelerated.
    """
    patch = accelerated_patch(model, "acceleration_report")
    settings, stages, device = patch.settings, stage_patches(model), device_of(model)
    native = runs_natively(settings.backend, device)
    float32 = patch.float32_choice()
    kept = [stage.graphs for stage in stages if isinstance(stage, (CausalPatch, FinePatch))]
    return AccelerationReport(
        stages=tuple(_stage_report(stage) for stage in (*stages, patch.codec_patch())),
        fallbacks=tuple(settings.log.reasons),
        token_choices=tuple(settings.log.choices),
        unneeded_options=tuple(settings.log.unneeded),
        backend=settings.backend,
        strict=settings.log.strict,
        isa=isa() if native else None,
        threads=torch.get_num_threads(),
        kv_cache_bytes=settings.pool.nbytes,
        stock_bugs={name: settings.stock_bugs.fixes(name) for name in STOCK_BUGS},
        cuda_graphs=settings.cuda_graphs and graphs_are_on() and device.type == "cuda",
        decode_step=step_kind(settings, device),
        fine_window=next((window_kind(stage) for stage in stages if isinstance(stage, FinePatch)), "Transformers' own"),
        captured_graphs=sum(graphs.count for graphs in kept),
        capture_faults=tuple(f"{graphs.what}: {graphs.fault}" for graphs in kept if graphs.fault is not None),
        given_up_steps=tuple(f"{graphs.what}, {why}" for graphs in kept for why in graphs.given_up.values()),
        native_fault=_native_fault(settings, device),
        attention=settings.attention if device.type == "cuda" else "sdpa",
        float32=None if float32 is None else str(float32),
        fit_windows=settings.fit_windows,
        long_coarse_windows=settings.long_coarse_windows,
        kv_cache_dtype=settings.kv_cache_dtype,
        compile_backend=None if settings.compiler is None else settings.compiler.backend,
        compiled_parts=() if settings.compiler is None else settings.compiler.parts,
        versions={
            "bark_accel": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _native_fault(settings: Settings, device: torch.device) -> str | None:
    return native_fault(device) if settings.backend != "torch" and is_served(device) else None


def _stage_report(patch: StagePatch) -> StageReport:
    blocked: FallbackReason | None = None
    copied = 0
    try:
        copied = patch.copied_bytes()
    except Fallback as fallback:
        blocked = fallback.reason
    parameter, device = next(patch.module.parameters()), device_of(patch.module)
    return StageReport(
        stage=patch.stage,
        ops="transformers" if blocked else patch.ops_name(device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(device),
        copied_bytes=copied,
        weights=patch.precision_name(parameter.dtype),
        drafts=replace(patch.draft_counts) if isinstance(patch, CausalPatch) else None,
        blocked_by=blocked,
    )


def isa() -> str:
    from bark_accel.ops._library import load

    return load().isa()
