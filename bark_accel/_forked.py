"""Forked children: OpenMP's threads do not survive a fork, and the thread that does would wait for them for ever.

Transformers' own code hangs there as well. A thread that the child starts gets new helpers and is not affected.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from pathlib import Path

import torch

logger = logging.getLogger("bark_accel")

_watched = False
# The thread that a fork has left in this process: of any, and of one after `watch`.
_alone: int | None = None
_survivor: int | None = None


def watch() -> None:
    """Expect helpers from now on. Called when a model is accelerated: OpenMP's threads may start from then on."""
    global _watched
    _watched = True


def _note_survivor() -> None:
    global _alone, _survivor
    _alone = threading.get_ident()
    if _watched:
        _survivor = _alone
    _looks_forked.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_survivor)


def may_have_lost_threads() -> bool:
    """Tell whether this thread's helpers may have been lost in a fork, also in one before this module was there."""
    # Whoever survives a fork is the child's main thread.
    is_main = threading.current_thread() is threading.main_thread()
    return threading.get_ident() == _alone or (is_main and _looks_forked())


@functools.cache
def _looks_forked(processes: Path = Path("/proc")) -> bool:
    """Tell whether this process has its parent's command line: then it is the same program, forked."""
    try:
        own, parents = ((processes / str(pid) / "cmdline").read_bytes() for pid in (os.getpid(), os.getppid()))
    except OSError:
        return False
    return own == parents


def avoid_lost_threads() -> None:
    """Keep torch to one thread, with a warning, where this thread's helpers were lost in a fork."""
    if threading.get_ident() == _survivor and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.warning(
            "bark_accel: this process was forked from one with an accelerated model, whose OpenMP threads do not exist "
            "here: generating on one thread. To use more, load the model after the fork, start processes with "
            "multiprocessing's 'spawn', or call generate in a thread of its own"
        )
