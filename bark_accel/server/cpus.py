"""Which cores a replica computes on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bark_accel._cpus import listed

_TOPOLOGY = Path("/sys/devices/system/cpu")


def disjoint_cpus(replicas: int, threads: int) -> list[set[int]]:
    """Share out the CPUs that this process may use.

    Neighbours of a package stay together, and a core's second hardware thread is taken once no whole core is left.

    Parameters
    ----------
    replicas, threads : int
        Sets, and CPUs in each.

    Raises
    ------
    ValueError
        There are too few CPUs, or this system pins no processes.
    """
    for name, value in (("replicas", replicas), ("threads-per-replica", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not hasattr(os, "sched_getaffinity"):
        raise ValueError("replicas: expected Linux, got a system that cannot pin processes to CPUs")
    usable = sorted(os.sched_getaffinity(0), key=_order)
    if replicas * threads > len(usable):
        raise ValueError(
            f"replicas: expected replicas x threads-per-replica of at most {len(usable)}, the CPUs that this process "
            f"may use, got {replicas} x {threads}"
        )
    return [set(usable[first : first + threads]) for first in range(0, replicas * threads, threads)]


def _order(cpu: int) -> tuple[int, int, int]:
    """Place in line: first hardware threads first, package by package."""
    folder = _TOPOLOGY / f"cpu{cpu}/topology"
    with suppress(OSError, ValueError):
        siblings = listed((folder / "thread_siblings_list").read_text())
        return siblings.index(cpu), int((folder / "physical_package_id").read_text()), cpu
    return 0, 0, cpu
