"""Input checks of the samplers, and of the rows that they could not sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .checks import require, require_float, require_no_grad, require_one_device
from .device import options_dtype

# Status codes of rows that cannot be sampled; equal to those in csrc/kernels/params.h.
NOT_FINITE, ALL_MASKED, BAD_NOISE = 1, 2, 3


def check_sample_inputs(
    op: str,
    logits: Tensor,
    first_id: int,
    allowed: Tensor,
    min_eos_p: Tensor | None,
    temperature: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
) -> None:
    require(logits.dim() == 2, op, f"expected logits of shape [N, L], got {list(logits.shape)}")
    require_float(op, "logits", logits)
    require_no_grad(op, logits)
    require(first_id >= 0, op, f"expected first_id >= 0, got {first_id}")
    require_one_device(op, logits, allowed, min_eos_p, temperature, top_k, top_p)
    _require_rule(op, "allowed", allowed, torch.int64, logits, dims=2)
    shape = f"expected allowed of shape [1 or N, 3] (begin, end, eos), got {list(allowed.shape)}"
    require(allowed.shape[1] == 3, op, shape)
    floats = {"min_eos_p": min_eos_p, "temperature": temperature, "top_p": top_p}
    for name, rule in floats.items():
        _require_rule(op, name, rule, options_dtype(logits.device), logits)
    _require_rule(op, "top_k", top_k, torch.int64, logits)
    if checks.on_host(logits) and len(logits):
        for begin, end, eos in allowed.tolist():
            _check_allowed(op, first_id, first_id + logits.shape[1], begin, end, eos)
        _check_options(op, *(None if t is None else t.tolist() for t in (min_eos_p, temperature, top_k, top_p)))


def _require_rule(op: str, name: str, rule: Tensor | None, dtype: torch.dtype, logits: Tensor, dims: int = 1) -> None:
    if rule is None:
        return
    wanted = f"expected {name} of dtype {dtype}, one entry or {len(logits)}"
    fits = rule.dtype == dtype and rule.dim() == dims and len(rule) in (1, len(logits))
    require(fits, op, f"{wanted}, got {rule.dtype} of shape {list(rule.shape)}")


def _check_allowed(op: str, first_id: int, stop: int, begin: int, end: int, eos: int) -> None:
    require(
        first_id <= begin < end <= stop,
        op,
        f"expected a non-empty allowed range inside [{first_id}, {stop}), got [{begin}, {end})",
    )
    require(eos < 0 or first_id <= eos < stop, op, f"expected eos_id -1 or inside [{first_id}, {stop}), got {eos}")


def _check_options(
    op: str,
    min_eos_p: list[float] | None,
    temperature: list[float] | None,
    top_k: list[int] | None,
    top_p: list[float] | None,
) -> None:
    for p in min_eos_p or ():
        require(p >= 0, op, f"expected min_eos_p >= 0 (0: off), got {p}")
    for t in temperature or ():
        require(t > 0 and math.isfinite(t), op, f"expected a finite temperature > 0, got {t}")
    for k in top_k or ():
        require(k >= 0, op, f"expected top_k >= 0 (0: off), got {k}")
    for p in top_p or ():
        require(0 <= p <= 1, op, f"expected top_p in [0, 1] (1: off), got {p}")


def check_noise(op: str, noise: Tensor, logits: Tensor, first_id: int) -> None:
    stop = first_id + logits.shape[1]
    require_one_device(op, logits, noise)
    require(noise.dim() == 2, op, f"expected noise of shape [N, V], got {list(noise.shape)}")
    require(noise.dtype == torch.float32, op, f"expected noise of dtype float32, got {noise.dtype}")
    require(
        noise.shape[0] == logits.shape[0],
        op,
        f"expected noise for {logits.shape[0]} rows, got {noise.shape[0]}",
    )
    require(noise.shape[1] >= stop, op, f"expected noise for at least {stop} ids, got {noise.shape[1]}")


MAX_DRAWS = 1 << 31


def check_source(op: str, logits: Tensor, generator: torch.Generator | None, vocab_size: int, first_id: int) -> None:
    stop, device = first_id + logits.shape[1], logits.device
    require(vocab_size >= stop, op, f"expected vocab_size >= {stop}, the end of the logits' ids, got {vocab_size}")
    rows = logits.shape[0]
    most = f"expected at most {MAX_DRAWS} numbers to draw, got {rows} rows of {vocab_size}"
    require(rows * vocab_size <= MAX_DRAWS, op, most)
    require(
        generator is None or generator.device.type == device.type,
        op,
        f"expected a generator on the {device.type}, got {generator.device if generator else None}",
    )


def check_generators(
    op: str, logits: Tensor, generators: Sequence[torch.Generator], vocab_size: int, first_id: int
) -> None:
    """Check generators of which each row has its own."""
    require(logits.dim() == 2, op, f"expected logits of shape [N, L], got {list(logits.shape)}")
    strangers = [type(each).__name__ for each in generators if not isinstance(each, torch.Generator)]
    require(not strangers, op, f"expected a torch.Generator for each row, got {', '.join(strangers)}")
    rows, distinct = len(logits), len(set(map(id, generators)))
    wanted = f"expected one generator for all rows, or {rows} that differ, one for each"
    require(len(generators) == distinct == rows, op, f"{wanted}, got {len(generators)}, {distinct} of them different")
    others = [generator for generator in generators if generator.device.type != logits.device.type]
    check_source(op, logits, others[0] if others else None, vocab_size, first_id)


def raise_bad_rows(op: str, ids: Tensor) -> None:
    """Raise for the first id [N] int64 that is minus the status of a row that could not be sampled."""
    if not bool((ids < 0).any()):
        return
    row, status = next((row, -i) for row, i in enumerate(ids.tolist()) if i < 0)
    scores = "expected allowed logits without NaN or +inf, also after the division by temperature"
    require(status != NOT_FINITE, op, f"{scores}, got one in row {row}")
    require(status != ALL_MASKED, op, f"expected at least one allowed logit above -inf, got none in row {row}")
    require(False, op, f"expected noise > 0 (torch.Tensor.exponential_), got none in row {row}")
