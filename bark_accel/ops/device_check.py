"""Compares the compiled ops of a device with plain torch before the first of them is used there.

Kernels that have not run on a kind of GPU before must not be trusted in silence. Each op runs on small inputs of every
shape class and dtype that it takes, about a tenth of a second in all; the expected result is the torch reference's on
the CPU, which no setting of the GPU (TF32, deterministic algorithms) changes. Inputs are always the same, drawn from a
generator of their own (`device_cases.py`). The ops compared here wait for no other block, so that none can hang. The
one launch that does, of many tokens (csrc/cuda/persistent_step.cuh), is compared in a generation, and its waiting is
bounded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .device_cases import Case, cases
from .interface import StepCache, StepWeights

logger = logging.getLogger("bark_accel")

_faults: dict[torch.device, str | None] = {}
_lock = threading.Lock()


def fault(candidate: Any, reference: Any, device: torch.device) -> str | None:
    """`first_difference` on a device, found once a process and logged when there is one.

    Raises
    ------
    RuntimeError
        The first use falls into the capture of a CUDA graph, where nothing can be compared.
    """
    device = _with_index(device)
    if device not in _faults:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"bark_accel: expected its first use on {device} before a CUDA graph is captured, got it during a "
                "capture; generate once before"
            )
        with _lock:
            if device not in _faults:
                _faults[device] = first_difference(candidate, reference, device)
                _warn(device, _faults[device])
    return _faults[device]


def _warn(device: torch.device, found: str | None) -> None:
    if found is not None:
        logger.warning("bark_accel runs plain torch ops on %s, its compiled ones are wrong there: %s", device, found)


def _with_index(device: torch.device) -> torch.device:
    bare_gpu = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if bare_gpu else device


def first_difference(candidate: Any, reference: Any, device: torch.device) -> str | None:
    """Name the first op of `candidate` that differs from `reference` or fails, and how; None where none does.

    Parameters
    ----------
    candidate, reference : objects with the ops as attributes
        `candidate`'s run on `device`, `reference`'s on the CPU. An op that is the same function in both is left out.
    device : torch.device
    """
    with _plain_arithmetic(device):
        for case in cases():
            if getattr(candidate, case.op) is getattr(reference, case.op):
                continue
            found = _difference(case, candidate, reference, device)
            if found is not None:
                return f"{case.op} ({case.label}): {found}"
    return None


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
        yield


def _difference(case: Case, candidate: Any, reference: Any, device: torch.device) -> str | None:
    run = _draw if case.op == "fused_multinomial" else _call
    try:
        got = run(candidate, case, device)
    except torch.cuda.OutOfMemoryError:  # says nothing about the ops
        raise
    except ValueError as error:
        return None if case.refused else f"raised {_short(error)}"
    except Exception as error:
        return f"raised {_short(error)}"
    if case.refused:
        return None if got[0].isnan().all() else "took what it has to refuse"
    expected = _expected_draw(reference, case, device) if run is _draw else _call(reference, _widened(case), _CPU)
    for result, wanted in zip(got, expected, strict=True):
        found = _distance(result, wanted, case.tolerance)
        if found is not None:
            return found
    return None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _distance(got: Tensor, expected: Tensor, tolerance: float) -> str | None:
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, torch {list(expected.shape)}"
    if tolerance == 0:
        different = int((got != expected).sum())
        return f"{different} of {got.numel()} values differ from torch's" if different else None
    if not torch.equal(got.isnan(), expected.isnan()):
        return "NaN where torch has none, or the other way round"
    got, expected = got.double().nan_to_num(), expected.double().nan_to_num()
    error, limit = float((got - expected).abs().max()), tolerance * float(expected.abs().max())
    return None if error <= limit else f"off by up to {error:.2g} from torch's, at most {limit:.2g} expected"


_CPU = torch.device("cpu")


def _call(ops: Any, case: Case, device: torch.device) -> list[Tensor]:
    arguments = [_copied(argument, device) for argument in case.arguments]
    result = getattr(ops, case.op)(*arguments)
    written = [t for i in case.written for t in _tensors_of(arguments[i])]
    return [t.cpu() for t in (result, *written)]


def _tensors_of(argument: Tensor | StepCache) -> Sequence[Tensor]:
    return argument if isinstance(argument, StepCache) else [argument]


def _draw(ops: Any, case: Case, device: torch.device) -> list[Tensor]:
    """The ids of `fused_multinomial` and the generator's state after it."""
    logits, seed, *options = case.arguments
    generator = torch.Generator(device).manual_seed(seed)
    ids = ops.fused_multinomial(_copied(logits, device), generator, *(_copied(o, device) for o in options))
    return [ids.cpu(), generator.get_state()]


def _expected_draw(ops: Any, case: Case, device: torch.device) -> list[Tensor]:
    """The same by the reference's rule, with the device's own noise."""
    logits, seed, vocab_size, *rules = case.arguments
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.empty(len(logits), vocab_size, dtype=torch.float32, device=device).exponential_(generator=generator)
    return [ops.fused_sample(_copied(logits, _CPU), noise.cpu(), *rules), generator.get_state()]


def _copied(value: Any, device: torch.device) -> Any:
    """Tensors copied to a device, with their strides and their place in a larger one; the rest as it is."""
    if isinstance(value, list):
        return [_copied(item, device) for item in value]
    if isinstance(value, (StepWeights, StepCache)):
        return type(value)(*(_copied(item, device) for item in value))
    if not isinstance(value, Tensor):
        return value
    count = value.untyped_storage().nbytes() // value.element_size()
    whole = value.as_strided((count,), (1,), 0).to(device, copy=True)
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def _widened(case: Case) -> Case:
    """The matrices of a decode step in float32, exactly: the reference would round its activations to 16 bits."""
    if case.op != "decode_step":
        return case
    ids, weights, cache = case.arguments
    layers = [_float_matrix(weight) for weight in weights.layers]
    weights = weights._replace(layers=layers, head=_float_matrix(weights.head))
    return replace(case, arguments=(ids, weights, cache))


def _float_matrix(weight: Tensor | None) -> Tensor | None:
    return weight.float() if weight is not None and weight.is_floating_point() else weight
