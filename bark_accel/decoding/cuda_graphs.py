"""CUDA graphs of decode steps: some whole tokens, their drawing included, are one launch.

A graph replays kernels on fixed addresses. What changes from token to token (ids, position, where the drawn token goes,
random numbers) is kept in device memory and moved on by the graph itself, so that a graph can hold many tokens and many
replays follow each other without the host. Noise starts in the caller's state; the caller's generator follows token by
token as they are given out, so tokens drawn too far (after the end of speech) leave no trace in it. Where the ops do
not know torch's noise (`graph_draw`), it comes from a generator of the graphs' own, one token a graph.

Tokens that one kernel can draw, as many as there are, are a graph of that one launch; and the steps of a graph may be
torch's own (`BARK_ACCEL_CUDA_STEP`, `bark_accel.ops.step_choice`). What of these cannot be had is given up for the
kernels.

After the notes on CUDA graphs, memory pools and generators in PyTorch's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Generator

from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .graph_capture import make_capturer
from .kept_graphs import KeptGraphs
from .step_captures import StepCaptures
from .step_graphs import StepGraphs

# An LRU bound: graph sets a stage. A user may vary batch sizes.
MAX_KEPT = 4

GRAPHS_VARIABLE = "BARK_ACCEL_CUDA_GRAPHS"


def graphs_are_on() -> bool:
    """Tell whether the environment lets graphs be used: `BARK_ACCEL_CUDA_GRAPHS` is not 0.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    value = os.environ.get(GRAPHS_VARIABLE) or "1"
    if value not in ("0", "1"):
        raise ValueError(f"{GRAPHS_VARIABLE}: expected 0 or 1, got {value!r}")
    return value == "1"


class GraphStore(KeptGraphs[StepGraphs]):
    """Keeps the graphs of one stage between calls, as long as all that they read stands where it stood.

    Two generations at once each get graphs of their own.
    """

    def __init__(self, what: str = "the decode step", most: int = MAX_KEPT):
        super().__init__(what, most)

    @contextmanager
    def lend_steps(self, model: CausalModel, cache: KVCache, *, keep: bool = True) -> Iterator[StepGraphs | None]:
        """Graphs for one generation with `cache`, started; None on a device without."""
        device = cache.keys.device

        def make() -> StepGraphs | None:
            capturer = make_capturer(device)
            if capturer is None:
                return None
            captures = StepCaptures(capturer, lambda: make_capturer(device), self.given_up)
            return StepGraphs(captures, model, cache, Generator(device))

        with self.lend(fingerprint(model, cache), make, keep=keep) as graphs:
            if graphs is None:
                yield None
                return
            graphs.start(model)
            try:
                yield graphs
            finally:
                graphs.end()


def fingerprint(model: CausalModel, cache: KVCache) -> tuple[Any, ...]:
    """Equal for models and caches whose graphs are interchangeable."""
    places = [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in (*model.matrices, *cache.tensors)]
    return (*places, *((t.dtype, t.shape) for t in model.vectors))
