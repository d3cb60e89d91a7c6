"""Describes what a decode step runs on, and why, in words for the report."""

from __future__ import annotations

import torch

from bark_accel.decoding.cuda_graphs import GRAPHS_VARIABLE, graphs_are_on
from bark_accel.decoding.graph_parts import GRAPH_TOKENS
from bark_accel.hf.offload import is_offloaded
from bark_accel.ops._library import ALL_THREADS, THREADS_VARIABLE, load
from bark_accel.ops.backend import get_ops, is_served, native_fault, runs_natively
from bark_accel.ops.graph_draw import follows_torch
from bark_accel.ops.step_choice import VARIABLE, made, wanted
from bark_accel.stages.fine_graphs import MOST_ROWS

from .fine import FinePatch
from .stage_patch import Settings


def step_kind(settings: Settings, device: torch.device) -> str:
    """Name the kernels of a decode step on a device, and how they are launched."""
    compiled = runs_natively(settings.backend, device)
    kernels = "compiled kernels" if compiled else f"plain torch, {_why(settings, device)}"
    if compiled and device.type == "cpu" and not load().has_threads():
        kernels += " of one thread, built without OpenMP"
    elif compiled and device.type == "cpu":
        kernels += _threads()
    if device.type != "cuda":
        return kernels
    if compiled and load().persistent_step:
        kernels = "one compiled kernel for all tokens of a stage or window, of up to four rows, else several"
    elif settings.cuda_graphs and graphs_are_on() and wanted() == "torch":
        kernels = f"torch's own operations, {VARIABLE}=torch"
    chosen = "".join(f"; {key}: {choice}" for key, choice in made().items()) if compiled else ""
    return f"{kernels}; {_launched(settings, device)}{chosen}"


def _threads() -> str:
    """The number of threads that share a step on a CPU, and who says so, where it is not simply torch's."""
    library = load()
    if library.fixed_step_threads == ALL_THREADS:
        return ""
    if library.fixed_step_threads:
        count = min(library.fixed_step_threads, torch.get_num_threads())
        return f", {count} thread{'s' * (count > 1)} a step by {THREADS_VARIABLE}"
    last = library.last_step_threads()
    said = f"{last} in the last one" if last else "no step yet"
    return f", as many threads a step as take the least time ({said})"


def _why(settings: Settings, device: torch.device) -> str:
    if settings.backend == "torch":
        return "backend='torch'"
    if not is_served(device):
        return f"the library has no kernels for {device}"
    return f"the compiled ones are wrong here: {native_fault(device)}"


def _launched(settings: Settings, device: torch.device) -> str:
    if not settings.cuda_graphs:
        return "one by one, cuda_graphs=False"
    if not graphs_are_on():
        return f"one by one, {GRAPHS_VARIABLE}=0"
    draw = get_ops(settings.backend, device, settings.attention).draw_next
    if draw is None:
        return "graphs of one token, plain torch draws"
    return (
        f"graphs of {GRAPH_TOKENS} tokens" if follows_torch(device, draw) else "graphs of one token, torch's own noise"
    )


def window_kind(patch: FinePatch) -> str:
    """Say how the passes over a window of the fine stage are launched."""
    if patch.captures and patch.graphs.fault is None:
        return f"one graph of up to {MOST_ROWS} rows, more kernel by kernel"
    return f"kernel by kernel, {_why_no_graph(patch)}"


def _why_no_graph(patch: FinePatch) -> str:
    settings = patch.settings
    if not settings.cuda_graphs:
        return "cuda_graphs=False"
    if not graphs_are_on():
        return f"{GRAPHS_VARIABLE}=0"
    if settings.compiler is not None:
        return f"compiled by {settings.compiler.backend}"
    return "its weights are offloaded" if is_offloaded(patch.module) else "it could not be captured"
