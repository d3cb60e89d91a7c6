"""The CPU time that a process may use by its control groups, and cores of two kinds: torch looks at neither."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_DEVICES = Path("/sys/devices")
# With so many, memory is full on most machines: where the search for a team's best size begins.
_FIRST_STEP_THREADS = 16


def cpu_quota(groups: Path = _GROUPS, root: Path = _ROOT) -> float | None:
    """Return the CPUs' worth of time that the process may use at once; None where that has no limit.

    The least of its own group's and of those above it. Version 2 of control groups (`cpu.max`) and version 1
    (`cpu.cfs_quota_us`); files that are not there or not as expected are no limit.

    Parameters
    ----------
    groups : Path
        The process's groups, a line `number:controllers:path` for each hierarchy.
    root : Path
        Where the hierarchies are mounted.
    """
    found = [quota for folder in _folders(groups, root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def usable_cpus() -> set[int]:
    """CPUs that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def fast_cores(usable: set[int], devices: Path = _DEVICES) -> int:
    """Count the cores among `usable` CPUs, of a CPU with fast and slow ones (P and E) the fast ones, if any is usable.

    Parameters
    ----------
    usable : set of int
        CPUs, as the system numbers them. Several threads of a core are one core.
    devices : Path
        `/sys/devices`. Where it does not say, every CPU is a core of its own.
    """
    fast = usable & set(listed(_read(devices / "cpu_core" / "cpus")))
    return len({_core(cpu, devices) for cpu in fast or usable})


def step_threads(
    usable: set[int] | None = None, quota: float | None = None, devices: Path = _DEVICES
) -> tuple[int, int]:
    """Return how many threads a decode step has at first, and at most; 0 where nothing but torch limits them.

    As many as there are fast cores, and not many more than fill the memory, at first; at most what the control groups
    allow. Without arguments, of this process.
    """
    usable, quota = usable or usable_cpus(), quota or cpu_quota()
    most = 0 if quota is None else max(1, math.ceil(quota))
    first = min(fast_cores(usable, devices), _FIRST_STEP_THREADS)
    return min(first, most or first), most


def listed(text: str) -> list[int]:
    """Read the kernel's lists of numbers, such as `0-2,8`; empty for what is none."""
    found: list[int] = []
    with suppress(ValueError):
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


def _core(cpu: int, devices: Path) -> int:
    """The first thread of the core."""
    return min(listed(_read(devices / f"system/cpu/cpu{cpu}/topology/thread_siblings_list")), default=cpu)


def _folders(groups: Path, root: Path) -> list[Path]:
    """The folders of the process's groups, and of all above them. In a container its own group may be the root."""
    folders = []
    for line in _read(groups).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = {root / controllers, root / "cpu"} if controllers else {root}
        inside = PurePosixPath(path.lstrip("/"))
        folders += [mount / part for mount in mounts for part in (inside, *inside.parents) if ".." not in part.parts]
    return folders


def _quota(folder: Path) -> float | None:
    limits = _read(folder / "cpu.max").split()
    if not limits:
        limits = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = map(int, limits)
    except ValueError:
        return None  # "max", or nothing
    return quota / period if quota > 0 and period > 0 else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
