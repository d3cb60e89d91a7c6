"""A token drawn on a GPU with everything that the next one reads moved on, so that a CUDA graph can hold many tokens.

The noise is that of torch's own CUDA generator, entry by entry, computed where it can decide: `follows_torch` compares
at first use, and where it differs graphs draw with torch's generator instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ._compiled import fake, op, require_one_device

STATE_BYTES = 16  # of a CUDA generator: seed and offset
_BLOCK = 256  # threads of a block of torch's distribution kernels
# Rows and entries: what one launch of torch's holds, and more than one entry a thread.
_TESTED = ((1, 10048), (3, 129), (8, 12096), (64, 40000))
_follows: dict[torch.device, bool] = {}


class NextStep(NamedTuple):
    """Device memory that a token moves on, int64.

    Attributes
    ----------
    ids : Tensor [N, 1]
        The token that the next step reads.
    drawn : Tensor [room, N]
        The tokens since the counts were 0.
    counts : Tensor [N]
        How many those are.
    length : Tensor [N]
        Valid entries of the cache, one more a token.
    """

    ids: Tensor
    drawn: Tensor
    counts: Tensor
    length: Tensor


def draw_next(logits: Tensor, philox: Tensor | None, vocab_size: int, step: NextStep, *rules: Any) -> Tensor:
    """Draw the next token of each row from logits [N, L] and move `step` on; ids [N] int64.

    `philox` [2] int64 holds seed and offset of a CUDA generator as it was when the counts were 0; it is not written.
    The tokens are those that `fused_multinomial` would draw from it, one call after the other. None: greedy. `rules`
    are as `fused_multinomial` takes them from `first_id` on. Where a row cannot be sampled while a graph is captured
    or replayed, the id is minus its status.

    Raises
    ------
    ValueError
        On shapes, dtypes or devices that do not fit, and, outside of graphs, as `fused_sample` does.
    """
    return op("draw_next")(logits, philox, vocab_size, *step, *rules)


@fake("draw_next")
def _fake_draw_next(logits: Tensor, philox: Tensor | None, *rest: Any, **more: Any) -> Tensor:
    tensors = [t for t in (*rest, *more.values()) if isinstance(t, Tensor)]
    require_one_device("draw_next", logits, philox, *tensors)
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def lanes(entries: int, device: torch.device) -> int:
    """Count the threads that torch launches for so many random entries."""
    blocks = -(-entries // _BLOCK)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        blocks = min(blocks, gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // _BLOCK))
    return _BLOCK * blocks


def advance(entries: int, device: torch.device) -> int:
    """Return what a draw of so many exponential entries moves the offset of a CUDA generator on by."""
    return ((entries - 1) // (lanes(entries, device) * 4) + 1) * 4


def states_after(state: Tensor, draws: int, step: int) -> list[Tensor]:
    """Return the generator states [16] uint8 after 1 to `draws` draws, which move the offset on by `step` each."""
    seed, offset = state.view(torch.int64).tolist()
    moved = ([seed, offset + (i + 1) * step] for i in range(draws))
    return [torch.tensor(numbers, dtype=torch.int64, device="cpu").view(torch.uint8) for numbers in moved]


def follows_torch(device: torch.device, draw: Callable[..., Tensor]) -> bool:
    """Tell whether `draw`, a `draw_next`, has the noise of this torch's generators on the device: compared once."""
    if device.type != "cuda":
        return False
    if device not in _follows:
        _follows[device] = all(_equals_torch(draw, device, *shape) for shape in _TESTED)
    return _follows[device]


def _equals_torch(draw: Callable[..., Tensor], device: torch.device, rows: int, entries: int) -> bool:
    """Compare two draws in which each entry's last bits decide: the probabilities are the noise itself."""
    generator = Generator(device).manual_seed(2023 + rows)
    torch.empty(5, device=device, dtype=torch.float32).exponential_(generator=generator)
    state = generator.get_state()
    if state.dtype != torch.uint8 or len(state) != STATE_BYTES:
        return False
    zeros = [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(3)]
    step = NextStep(zeros[0][:, None], zeros[0].new_zeros(2, rows), zeros[1], zeros[2])
    allowed = torch.tensor([[0, entries, -1]], dtype=torch.int64, device=device)
    rules = (0, allowed, None, None, None, None, False)
    for _ in range(2):
        noise = torch.empty(rows, entries, dtype=torch.float32, device=device).exponential_(generator=generator)
        expected = op("fused_sample")(noise.log(), noise, *rules)
        if not torch.equal(draw(noise.log(), state.view(torch.int64).to(device), entries, step, *rules), expected):
            return False
    return torch.equal(states_after(state, 2, advance(rows * entries, device))[-1], generator.get_state())
