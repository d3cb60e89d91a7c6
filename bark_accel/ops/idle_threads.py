"""Threads of OpenMP that a Python thread leaves behind when another one computes.

libgomp counts the threads of a process. If there are more than CPUs, a helper that has nothing to do sleeps at once,
and has to be woken for each parallel operation; else it looks out for the next one for a while. So the idle helpers of
one Python thread slow down every operation of another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bark_accel._forked import may_have_lost_threads

from . import _library


def end_idle_threads() -> None:
    """End the helpers of the calling Python thread, which lets another one compute; its next operation starts new ones.

    Does nothing where the compiled library is not in use, and in a forked process, whose helpers do not exist.
    """
    if _library.is_loaded() and torch.get_num_threads() > 1 and not may_have_lost_threads():
        _library.load().end_idle_threads()


def copied(audio: Tensor) -> Tensor:
    """Copy a waveform [S] on the CPU without helpers, which torch takes for long ones."""
    return torch.from_numpy(audio.numpy().copy())
