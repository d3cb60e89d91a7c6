"""A dry run of `benchmarks gpu` in which one table crashes and another hangs: `test_run.py` looks at what is left.

Usage, with the root of the repository on PYTHONPATH: planted_run.py ARGUMENTS
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from benchmarks.gpu import run
from benchmarks.gpu.plan import DRY, Job, table_jobs


def crash(plan: Any, rows: Any, job: Job) -> None:
    row = {"bytes_read": 1, "native_eager_ms": 1.0}
    rows.add("decode_step", {"shape": job.shape, "name": "before the crash"}, lambda: row)
    rows.add("decode_step", {"shape": job.shape, "name": "the crash"}, os.abort)


def hang(plan: Any, rows: Any, job: Job) -> None:
    """As a wait for a device that never answers: it has children, and does not end when it is asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rows.add("first_sound", {"shape": job.shape, "policy": "before the hang"}, lambda: {"first_sound_s": 1.0})
    # Recognised by its last argument, which no other run has.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", os.environ["OUT"]])
    rows.add("first_sound", {"shape": job.shape, "policy": "the hang"}, lambda: time.sleep(600))


def planted_jobs() -> list[Job]:
    planted = {"decode_step": ("planted_run:crash", 60.0), "first_sound": ("planted_run:hang", 6.0)}
    jobs = []
    for job in table_jobs(DRY):
        measure, limit_s = planted.get(job.table, (job.measure, job.limit_s))
        jobs.append(replace(job, measure=measure, limit_s=limit_s))
    return jobs


if __name__ == "__main__":
    sys.exit(run.main(jobs=planted_jobs()))
