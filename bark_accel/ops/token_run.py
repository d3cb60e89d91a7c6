"""Many tokens of a causal model in one CUDA kernel (`persistent_step.cuh`): steps and draws, to the end of speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _library, step_choice
from ._compiled import fake, op, require_one_device
from .graph_draw import NextStep
from .interface import StepCache, StepWeights

MOST_ROWS = 4
MOST_LAYERS = 32
_LINE_BYTES = 16


class TokenRun(NamedTuple):
    """Limits and noise of a launch, beside its step.

    Attributes
    ----------
    limit : Tensor [1] int64
        Tokens a row at most, read when the kernel runs.
    stop : int
        A row whose id it is has ended and keeps it, as one does that cannot be sampled; where all have, the launch
        ends. -1: none has.
    philox : Tensor [2] int64, optional
        See `graph_draw.draw_next`; None: greedy.
    vocab_size : int
    """

    limit: Tensor
    stop: int
    philox: Tensor | None
    vocab_size: int


def decode_tokens(
    weights: StepWeights,
    heads: Sequence[tuple[Tensor, Tensor | None]],
    cache: StepCache,
    step: NextStep,
    run: TokenRun,
    rules: Sequence[Sequence[Any]],
) -> Tensor:
    """Draw tokens as `decode_step` and `draw_next` would, one after the other; the last scores [N, L] float32.

    Parameters
    ----------
    weights : StepWeights
        Its head is not read.
    heads, rules : one or two each, which take turns
        Rows of the head with their scales, and the arguments of `draw_next` after the step, alike but for `first_id`
        and `allowed`.
    cache : StepCache
        Its length is that of `step`.
    step : NextStep
        Moved on; rows of one token.

    Raises
    ------
    ValueError
        On shapes, dtypes or devices that do not fit, and where `misfit` says why not.
    """
    first_ids, allowed, *options = zip(*rules, strict=True)
    common = [values[0] for values in options]
    matrices, scales = ([*column] for column in zip(*heads, strict=True))
    return op("decode_tokens")(
        *(step.ids, weights.token_table, weights.positions, weights.layers, weights.eps, matrices, scales),
        *(weights.num_heads, cache.keys, cache.values, cache.length, step.drawn, step.counts),
        *(run.limit, run.stop, run.philox, run.vocab_size, [*first_ids], [*allowed], *common),
    )


@fake("decode_tokens")
def _fake_decode_tokens(ids: Tensor, token_table: Tensor, positions: Tensor, weights: Any, eps: Any, heads: Any, *rest):
    tensors = [t for t in (*weights, *heads, *rest) if isinstance(t, Tensor)]
    require_one_device("decode_tokens", ids, token_table, positions, *tensors)
    return torch.empty(ids.shape[0], max(len(head) for head in heads), dtype=torch.float32, device=ids.device)


def misfit(weights: StepWeights, cache: StepCache) -> str | None:
    """Say why one kernel cannot run the tokens of a batch, or None where it can."""
    layers, rows = cache.keys.shape[:2]
    matrices = [t for t in weights.layers if t is not None and t.dim() == 2 and t.dtype == weights.head.dtype]
    if not 1 <= rows <= MOST_ROWS:
        return f"{rows} rows, not 1 to {MOST_ROWS}"
    if layers > MOST_LAYERS:
        return f"{layers} layers, more than {MOST_LAYERS}"
    if len(matrices) < 4 * layers:
        return "weights of several dtypes"
    if any(not _in_lines(matrix) for matrix in (*matrices, weights.head)):
        return f"weights that are not in lines of {_LINE_BYTES} bytes"
    wanted = torch.float16 if weights.head.dtype == torch.int8 else weights.head.dtype
    if cache.keys.dtype != wanted:
        return f"a cache of {cache.keys.dtype} beside weights of {weights.head.dtype}"
    return None


def _in_lines(matrix: Tensor) -> bool:
    sizes = matrix.data_ptr(), matrix.stride(0) * matrix.element_size(), matrix.shape[1] * matrix.element_size()
    return all(size % _LINE_BYTES == 0 for size in sizes)


def is_chosen(weights: StepWeights, cache: StepCache) -> bool:
    """Tell whether a batch's tokens are drawn by one kernel: where it is chosen, or to be tried, and can be."""
    device = cache.keys.device
    if not _is_gpu(device) or misfit(weights, cache) is not None:
        return False
    chosen = step_choice.choice(step_choice.key_of(weights, cache))
    if chosen is not None and chosen.step != "persistent" and not _library.load().persistent_step:
        return False
    return _library.load().runs_all_blocks_at_once(_index(device))


def is_torchs(weights: StepWeights, cache: StepCache) -> bool:
    """Tell whether a batch's steps are torch's own operations: where that is chosen."""
    if not _is_gpu(cache.keys.device):
        return False
    chosen = step_choice.choice(step_choice.key_of(weights, cache))
    return chosen is not None and chosen.step == "torch"


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index or 0


def to_be_tried(weights: StepWeights, cache: StepCache) -> str | None:
    """Return the key by which a trial has to choose, or None where it is chosen."""
    key = step_choice.key_of(weights, cache)
    return key if not _library.load().persistent_step and step_choice.choice(key) is None else None
