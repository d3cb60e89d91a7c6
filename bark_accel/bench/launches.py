"""Kernels that a generation starts on a GPU, by torch's profiler, which slows what is measured after it."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BarkModel

from .measure import Run, run_once


def stage_launches(
    model: BarkModel, inputs: dict[str, Any], seed: int, *, on_gpu: bool
) -> tuple[dict[str, dict[str, int]], Run]:
    """Count kernels and copies of each stage of a generation, prompts included, and return its run.

    Parameters
    ----------
    inputs : dict
        Arguments of `generate`.
    on_gpu : bool
        Count what runs on a GPU; else ops of the CPU.

    Raises
    ------
    RuntimeError
        The profiler saw none.
    """
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    counts: dict[str, dict[str, int]] = {}
    running: list[tuple[str, profile]] = []

    def end_stage() -> None:
        if running:
            stage, seen = running.pop()
            if on_gpu:
                torch.cuda.synchronize(model.device)
            seen.stop()
            counts[stage] = counted(device_events(seen, on_gpu))

    def begin_stage(stage: str) -> None:
        end_stage()
        running.append((stage, profile(activities=[activity])))
        running[0][1].start()

    try:
        run = run_once(model, inputs, seed, begin_stage)
    finally:
        end_stage()
    if not any(stage["kernels"] for stage in counts.values()):
        raise RuntimeError("the profiler saw no kernel")
    return counts, run


def kernels_per_token(counts: dict[str, dict[str, int]], tokens: dict[str, int]) -> dict[str, float]:
    """Kernels for each token of a row, of the stages that go token by token; 0 where there was none."""
    return {stage: counts[stage]["kernels"] / max(1, its) for stage, its in tokens.items()}


def tokens_of_a_row(run: Run, rows: int = 1) -> dict[str, int]:
    """Steps of the two stages that go token by token."""
    return {stage: run.outputs[stage].numel() // rows for stage in ("semantic", "coarse")}


def device_events(seen: profile, on_gpu: bool) -> list[tuple[str, int, float]]:
    """(name, how often, microseconds) of what ran on the device."""
    events = []
    for event in seen.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            events.append((event.key, event.count, microseconds))
    return events


def counted(events: list[tuple[str, int, float]]) -> dict[str, int]:
    """Number of kernels, and of copies, among events of a device."""
    copies = sum(count for name, count, _ in events if name.startswith(("Memcpy", "Memset")))
    return {"kernels": sum(count for _, count, _ in events) - copies, "copies": copies}
