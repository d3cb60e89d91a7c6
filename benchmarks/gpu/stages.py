"""The parts of a run, each under a limit. A part returns whether it makes sense to go on."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import limits
from benchmarks.gpu.limits import OK
from benchmarks.gpu.plan import LEAST_JOB_S, Job, Plan, machine_job, smoke_job
from benchmarks.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]
KERNEL_TESTS = ["tests/gpu/test_kernels.py"]
OTHER_TESTS = ["tests/gpu/test_generation.py"]
BUILD_S, LIBRARY_S, KERNEL_TESTS_S, PLOTS_S, LEAST_COMMAND_S = 150.0, 60.0, 90.0, 30.0, 2.0
# Between the end that the parts are told and the one that nothing outlives: signals, and the last rows.
MARGIN_S = 12.0
ARCHS_VARIABLE = "BARK_ACCEL_CUDA_ARCHS"
LOAD = "from bark_accel.ops._library import cuda_archs, load; load(); print('CUDA kernels for', cuda_archs()); "
# Of setup.py. For one of them alone the build takes a seventh of the time.
ARCHS = ("75", "80", "86", "89", "90", "100", "120")
HAS_CUDA = "import sys; sys.exit(cuda_archs() is None)"


class Stages:
    """Shares the time of a run among its parts, and writes down how long each took and how it ended."""

    def __init__(self, arguments: argparse.Namespace, plan: Plan, report: Report, jobs: list[Job]):
        self._arguments, self._plan, self._report, self._jobs = arguments, plan, report, jobs
        self._end = time.monotonic() + arguments.seconds - min(MARGIN_S, arguments.seconds / 5)
        self._kernels_failed = False
        limits.start_server()

    def left_s(self, kept_s: float = 0) -> float:
        return self._end - time.monotonic() - kept_s

    def build(self) -> bool:
        """A library that does not load is built again, and that is a failure to be told."""
        check = self._python("-c", LOAD + (HAS_CUDA if self._plan.on_gpu else ""))
        if self._arguments.prebuilt and self._command("library", check, LIBRARY_S):
            return True
        environment = {"BARK_ACCEL_CUDA": "1" if self._plan.on_gpu else "0", "MAX_JOBS": str(self._arguments.jobs)}
        here = self._report.content["machine"].get("capability", "").replace(".", "")
        if here in ARCHS and ARCHS_VARIABLE not in os.environ:
            environment[ARCHS_VARIABLE] = here
        return self._command("build", self._python("setup.py", "build_ext", "--inplace", "-q"), BUILD_S, environment)

    def kernel_tests(self) -> bool:
        """The first failure ends them: what comes after says more in less time."""
        targets = self._arguments.kernel_tests
        self._kernels_failed = not self._tests("kernel tests", [*targets, "-x"], KERNEL_TESTS_S)
        return True

    def smoke(self) -> bool:
        """Which machine this is, and three short generations. Without a device there is nothing else to do."""
        if not self._job(machine_job(self._plan)):
            limits.do_without_server()
            if not self._job(machine_job(self._plan)):
                return False
        self._job(smoke_job(self._plan))
        return True

    def tables(self) -> bool:
        """Measure the tables in the order of the jobs; time is kept for the tests that come after."""
        kept_s = self._arguments.tests_seconds if self._arguments.command == "run" else 0
        for job in self._jobs:
            if self.left_s(kept_s) < min(LEAST_JOB_S, job.limit_s):
                self._report.receive(("left_out_for_lack_of_time", job.name))
            else:
                self._job(job, kept_s)
        return True

    def other_tests(self) -> bool:
        """Run the other tests in the time that is left, and all of the kernels' again where one of them failed."""
        targets = [*self._arguments.other_tests, *(self._arguments.kernel_tests if self._kernels_failed else [])]
        in_parallel = ["-n", "4"] if self._plan.on_gpu and find_spec("xdist") is not None else []
        self._tests("other tests", [*targets, *in_parallel], self.left_s(), may_be_late=True)
        return True

    def plots(self) -> bool:
        if find_spec("matplotlib") is None:
            self._report.receive(("left_out", "plots: matplotlib is not installed"))
        else:
            self._command("plots", self._python("-m", "benchmarks", "gpu-plots", str(self._report.path)), PLOTS_S)
        return True

    def sanitize(self) -> bool:
        """Without torch's pool of memory, so that the sanitizer knows where a tensor ends; our races only."""
        tool = self._arguments.sanitizer
        names = "--kernel-name" if "--kernel-name" in help_of(tool) else "--kernel-regex"
        checks = {
            "memcheck": ([], "not graph and not threads"),
            "racecheck": ([names, "kns=bark_accel"], "twin and not graph"),
        }
        environment = {"BARK_ACCEL_NEEDS_GPU": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "BARK_ACCEL_TEST_SEEDS": "1"}
        for check, (options, tests) in checks.items():
            sanitizer = [tool, "--error-exitcode", "1", "--target-processes", "all", "--tool", check, *options]
            tested = self._python("-m", "pytest", *self._arguments.kernel_tests, "-v", "-x", "-k", tests)
            # Half of the time for the first of the two.
            self._command(check, [*sanitizer, *tested], self.left_s() / (2 if check == "memcheck" else 1), environment)
        return True

    def _python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    def _command(
        self,
        name: str,
        command: list[str],
        limit_s: float,
        environment: dict[str, str] | None = None,
        polite: int = signal.SIGTERM,
        may_be_late: bool = False,
    ) -> bool:
        limit_s, began = min(limit_s, self.left_s()), time.monotonic()
        if self._is_late(name):
            return False
        print(f"== {name}, at most {limit_s:.0f} s: {' '.join(command)}", flush=True)
        environment = {"PYTHONPATH": str(ROOT), **(environment or {})}
        outcome = limits.run_command(command, limit_s, environment, polite, ROOT)
        self._report.stage(name, time.monotonic() - began, limit_s, outcome, may_be_late)
        return outcome == OK

    def _is_late(self, name: str) -> bool:
        late = self.left_s() < LEAST_COMMAND_S
        if late:
            self._report.receive(("left_out_for_lack_of_time", name))
        return late

    def _tests(self, name: str, targets: list[str], limit_s: float, may_be_late: bool = False) -> bool:
        """SIGINT: pytest says what it has found so far. A test that hangs for a minute says where."""
        junit = self._report.path.with_name(f"{self._report.path.stem}_{name.replace(' ', '_')}.xml")
        junit.unlink(missing_ok=True)
        if self._is_late(name):
            return False
        options = ["-v", "-rs", "-o", "faulthandler_timeout=60", f"--junitxml={junit}"]
        environment = {"BARK_ACCEL_NEEDS_GPU": "1"} if self._plan.on_gpu else {}
        command = self._python("-m", "pytest", *targets, *options)
        passed = self._command(name, command, limit_s, environment, signal.SIGINT, may_be_late)
        self._report.add_tests(name, junit)
        return passed

    def _job(self, job: Job, kept_s: float = 0) -> bool:
        limit_s, began = min(job.limit_s, self.left_s(kept_s)), time.monotonic()
        print(f"== {job.name}, at most {limit_s:.0f} s", flush=True)
        outcome = limits.run_job(job, self._plan, limit_s, self._report.receive)
        self._report.stage(job.name, time.monotonic() - began, limit_s, outcome)
        return outcome == OK


def help_of(tool: str) -> str:
    try:
        return subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
