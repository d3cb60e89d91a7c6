"""Draws from a generator as ``torch.multinomial`` does, without the noise that cannot matter.

On a CPU the generator's state goes into the compiled op and comes back advanced: the op draws the generator's words and
takes the logarithm, which makes noise of them, only where it can decide. Rows with a generator each are divided among
threads. Threads of ours may share a generator; draws of torch's own that another thread makes of it meanwhile may be
given out twice.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _library, checks
from ._compiled import kernel, op
from .checks import require
from .sample_checks import check_generators, check_source

STATE_BYTES = 5056  # of a CPU generator
# Sizes around a SIMD width, a generator block (312 entries) and torch's grain of parallelism (32768).
_TESTED_SIZES = (1, 15, 16, 17, 311, 312, 313, 1072, 10048, 32769)
# Threads may share a generator. Any two of them seldom share a lock.
_locks: tuple[threading.Lock, ...]


def _renew_locks() -> None:
    global _locks
    _locks = tuple(threading.Lock() for _ in range(64))


_renew_locks()
if hasattr(os, "register_at_fork"):
    # A thread that is not in the child may hold one.
    os.register_at_fork(after_in_child=_renew_locks)
_wanted = True


def set_lazy(on: bool) -> None:
    """Compute noise where it can decide (the default), or in full; the tokens are the same.

    Raises
    ------
    ValueError
        Turned on for a torch whose noise is not known.
    """
    global _wanted
    require(not on or _is_known(), "set_lazy", "expected a torch whose noise is known, got another one")
    _wanted = on


def is_lazy() -> bool:
    """Tell whether noise is computed only where it can decide: a test at first use knows this torch's noise."""
    return _wanted and _is_known()


@functools.cache
def _is_known() -> bool:
    known = all(_equals_torch(size) for size in _TESTED_SIZES)
    if not known:
        warnings.warn(
            "bark_accel: this torch draws exponential noise in a way that is not known; drawing it in full, with the "
            "same tokens and less speed",
            stacklevel=2,
        )
    return known


def _equals_torch(size: int) -> bool:
    """Compare noise and state after it, to the bit."""
    theirs = torch.Generator().manual_seed(2023 + size)
    state = theirs.get_state()
    if state.dtype != torch.uint8 or len(state) != STATE_BYTES:
        return False
    expected = torch.empty(size, dtype=torch.float32, device="cpu").exponential_(1, generator=theirs)
    noise = torch.empty(size, dtype=torch.float32, device="cpu")
    _library.load().draw_noise(state.data_ptr(), noise.data_ptr(), size)
    return torch.equal(noise.view(torch.int32), expected.view(torch.int32)) and torch.equal(state, theirs.get_state())


@kernel("fused_multinomial")
def draw(logits: Tensor, generator: torch.Generator | None, vocab_size: int, first_id: int, *rules: Any) -> Tensor:
    """Pick a token per row; see :func:`bark_accel.ops.native.fused_multinomial`."""
    if logits.device.type == "cpu" and is_lazy():
        return _draw_words(logits, generator or torch.default_generator, vocab_size, first_id, *rules)
    require(logits.dim() == 2, "fused_multinomial", f"expected logits of shape [N, L], got {list(logits.shape)}")
    check_source("fused_multinomial", logits, generator, vocab_size, first_id)
    noise = torch.empty(len(logits), vocab_size, dtype=torch.float32, device=logits.device)
    return op("fused_sample")(logits, noise.exponential_(1, generator=generator), first_id, *rules)


def _draw_words(logits: Tensor, generator: torch.Generator, *options: Any) -> Tensor:
    if generator.device.type != "cpu":
        raise ValueError(f"fused_multinomial: expected a generator on the cpu, got {generator.device}")
    with _lock_of(generator):
        state = generator.get_state()
        try:
            return op("fused_multinomial.state")(logits, state, *options)
        finally:
            generator.set_state(state)


def draw_each(
    logits: Tensor, generators: Sequence[torch.Generator], vocab_size: int, first_id: int, *rules: Any, checked: bool
) -> Tensor:
    """Pick a token per row, each from its own generator; see :func:`bark_accel.ops.native.fused_multinomial`."""
    check_generators("fused_multinomial", logits, generators, vocab_size, first_id)

    def draw() -> Tensor:
        if type(logits) is Tensor and logits.device.type == "cpu" and is_lazy():
            return _draw_words_each(logits, generators, vocab_size, first_id, *rules)
        sample = op("fused_sample" if checked or checks.on_host(logits) else "fused_sample.unchecked")
        with noise_of_each(generators, vocab_size, logits.device) as noise:
            return sample(logits, noise, first_id, *rules)

    # In one order, so that no two threads wait for each other.
    return _holding(sorted({_lock_of(generator) for generator in generators}, key=id), draw)


@contextmanager
def noise_of_each(generators: Sequence[torch.Generator], vocab_size: int, device: torch.device) -> Iterator[Tensor]:
    """Exponential noise [N, vocab_size] float32, a row of each generator, as it draws it for a row alone.

    If the block raises, the generators stand where they stood.
    """
    states = [generator.get_state() for generator in generators]
    noise = torch.empty(len(generators), vocab_size, dtype=torch.float32, device=device)
    try:
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(1, generator=generator)
        yield noise
    except BaseException:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        raise


def _draw_words_each(logits: Tensor, generators: Sequence[torch.Generator], *options: Any) -> Tensor:
    states = [generator.get_state() for generator in generators]
    tokens = op("fused_multinomial.states")(logits, states, *options)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return tokens


def _lock_of(generator: torch.Generator) -> threading.Lock:
    return _locks[id(generator) // 64 % len(_locks)]


def _holding(locks: Sequence[threading.Lock], draw: Callable[[], Tensor]) -> Tensor:
    """Draw while no other thread of ours does; `with` alone keeps no lock if a signal comes in between."""
    if not locks:
        return draw()
    with locks[0]:
        return _holding(locks[1:], draw)
