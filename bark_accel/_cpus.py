"""CPU time that a process may use by its control groups, which torch does not look at."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


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
