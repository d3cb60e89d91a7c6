"""Runs a command, or a function in a process of its own, and ends it when its time is over. Free of torch.

The functions' processes are forked from a server that has imported what they need and has touched no device. So each
has a device context of its own, which a crash or a hang of another one leaves alone, and none pays for the imports.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Job, Plan

OK, CUT_OFF = "ok", "cut off"
PRELOADED = tuple(f"benchmarks.gpu.{name}" for name in ("generate", "variants", "steps", "profile", "serving"))
# From the polite signal to SIGKILL, and from there until a process counts as one that cannot be killed.
GRACE_S = 4.0
# What a process is told to have less than its limit: what does not fit is then named, rather than cut off.
MARGIN_S = 2.0

_groups: set[int] = set()
_context: Any = multiprocessing.get_context("forkserver")


def run_command(
    command: list[str],
    limit_s: float,
    environment: dict[str, str] | None = None,
    polite: int = signal.SIGTERM,
    folder: Path | None = None,
) -> str:
    """Run a command and return how it ended, "ok" for exit status 0."""
    began = time.monotonic()
    try:
        environment = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, env=environment, cwd=folder, preexec_fn=os.setpgrp)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    _groups.add(process.pid)
    try:
        return _ending(process.wait(max(limit_s, 0)))
    except subprocess.TimeoutExpired:
        _signal(process.pid, polite)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return _cut_off(began)
    finally:
        _end(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def run_job(job: Job, plan: Plan, limit_s: float, on_message: Callable[[tuple], None]) -> str:
    """Measure a table in a process of its own, pass on what it sends, and return how it ended."""
    began = time.monotonic()
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=work, args=(job, plan, limit_s - MARGIN_S, sender))
    try:
        # The first one waits for the imports.
        process.start()
    except (OSError, EOFError) as error:
        return f"the process did not start: {type(error).__name__}: {error}"
    finally:
        sender.close()
    assert process.pid is not None
    _groups.add(process.pid)
    try:
        died = _listen(receiver, process.sentinel, began + limit_s, on_message)
    except TimeoutError:
        _signal(process.pid, signal.SIGTERM)
        process.join(GRACE_S)
        return _cut_off(began)
    else:
        process.join(GRACE_S)
        return died or _ending(process.exitcode)
    finally:
        _end(process.pid)
        process.join(GRACE_S)


def start_server() -> None:
    """Say what the server imports; it starts with the first job."""
    folders = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    # Otherwise to ask whether there is a GPU would be to touch it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    _context.set_forkserver_preload(list(PRELOADED))


def do_without_server() -> None:
    """Start every process anew from here on: slower, but no import of the server's can have touched a device."""
    global _context
    _context = multiprocessing.get_context("spawn")


def end_all() -> None:
    """Kill every process that was started here, with all that it started."""
    for group in list(_groups):
        _end(group)


def work(job: Job, plan: Plan, seconds: float, sender: Connection) -> None:
    """Call the job's function, in the process that is its own; SIGTERM tells where it was."""
    os.setpgrp()
    # Dumping the memory of a crashed process takes longer than measuring anew.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)
    try:
        from benchmarks.gpu.rows import measure

        measure(job, plan, seconds, sender.send)
    except Exception as error:
        traceback.print_exc()
        sender.send(("died", f"{type(error).__name__}: {error}"[:500]))
        sys.exit(1)


def _listen(receiver: Connection, sentinel: int, end: float, on_message: Callable[[tuple], None]) -> str | None:
    """Until the process has ended; returns what it died of, if it could say it. Raises `TimeoutError`."""
    died = None
    while True:
        ready = wait([receiver, sentinel], max(end - time.monotonic(), 0))
        if not ready:
            raise TimeoutError
        if receiver not in ready:
            return died
        try:
            message = receiver.recv()
        except (EOFError, OSError):
            wait([sentinel], max(end - time.monotonic(), 0))
            return died
        if message[0] == "died":
            died = message[1]
        else:
            on_message(message)


def _ending(status: int | None) -> str:
    if status is None:
        return "did not end"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return OK if status == 0 else f"exit status {status}"


def _cut_off(began: float) -> str:
    return f"{CUT_OFF} after {time.monotonic() - began:.0f} s"


def _signal(group: int, number: int) -> None:
    """To a process and all that it started; a process that was just forked leads no group yet."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, number)


def _end(group: int) -> None:
    _signal(group, signal.SIGKILL)
    _groups.discard(group)
