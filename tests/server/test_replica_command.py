"""`bark-accel serve --replicas`: a whole process group of its own, its options, and the choice of cores."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.command import run
from support.servers import SPEECH
from support.waiting import LIMIT_S, until

from bark_accel.cli import serve
from bark_accel.server import cpus
from bark_accel.server.cpus import disjoint_cpus
from bark_accel.server.settings import Settings

BODY = {"model": "tts-1", "voice": "alloy", "input": "Hello, my dog is cute. " * 8, "response_format": "pcm", "seed": 5}


@contextmanager
def command(*options: str):
    """The command in a process group of its own; its process, and a client."""
    arguments = [sys.executable, "-m", "bark_accel", "serve", "--port", "0", *options]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    try:
        until(lambda: any("Uvicorn running" in line for line in lines))
        (url,) = re.findall(r"http://127.0.0.1:\d+", "".join(lines))
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            until(lambda: client.get("/ready").status_code == 200, every_s=0.05)
            yield process, client
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()


def members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_sigterm_to_all_lets_requests_end():
    """As systemd sends it, and Ctrl-C in a terminal: to every process of the group."""
    options = ("--replicas", "2", "--threads-per-replica", "1", "--drain", round(LIMIT_S))
    with command(*map(str, options)) as (process, client):
        assert len(members(process.pid)) == 4
        whole = client.post(SPEECH, json=BODY).content
        with client.stream("POST", SPEECH, json=BODY) as answer:
            pieces = answer.iter_bytes()
            first = next(pieces)
            os.killpg(process.pid, signal.SIGTERM)
            assert first + b"".join(pieces) == whole
        # uvicorn ends, and then raises the signal again.
        assert process.wait(LIMIT_S) == -signal.SIGTERM
        until(lambda: not members(process.pid))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_nothing_outlives_a_front_that_is_killed():
    with command("--replicas", "2") as (process, _):
        process.kill()
        process.wait()
        until(lambda: not members(process.pid))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "5000", "--threads-per-replica", "2"], "CPUs that this process may use, got 5000 x 2"),
        (["--threads-per-replica", "2"], "--threads-per-replica: expected --replicas with it"),
        (["--replicas", "1", "--threads", "2"], "expected --threads-per-replica in its place"),
        (["--replicas", "0"], "equal to 1"),
    ],
)
def test_options_that_do_not_fit(options, said):
    result = run("serve", *options)
    assert result.exit_code == 2 and said in " ".join(result.output.split())


def test_replicas_are_of_cpus():
    with pytest.raises(ValueError, match="replicas: expected the CPU as device with them, got cuda"):
        Settings(replicas=1, device="cuda")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Two packages of two cores with two hardware threads; CPU n and n + 4 are of one core, as Linux counts."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
    monkeypatch.setattr(cpus, "_TOPOLOGY", tmp_path)

    def may_use(numbers):
        monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: set(numbers))

    return may_use


def test_whole_cores_come_first(machine):
    machine(range(8))
    assert disjoint_cpus(2, 2) == [{0, 1}, {2, 3}]
    assert disjoint_cpus(4, 2) == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    machine([1, 4, 5, 6])
    assert disjoint_cpus(2, 1) == [{1}, {4}]


def test_siblings_that_are_neighbours(machine, tmp_path):
    """CPU 2n and 2n + 1 are of one core, as many virtual machines count."""
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
        (tmp_path / f"cpu{cpu}/topology/physical_package_id").write_text("0")
    machine(range(8))
    assert disjoint_cpus(2, 2) == [{0, 2}, {4, 6}]


def test_too_many(machine):
    machine([1, 2, 3])
    with pytest.raises(ValueError, match="of at most 3, the CPUs that this process may use, got 2 x 2"):
        disjoint_cpus(2, 2)


def test_a_container_with_less_time(monkeypatch):
    said = []
    monkeypatch.setattr(serve, "warn", said.append)
    for quota in (None, 2.0, 1.5):
        monkeypatch.setattr(serve, "cpu_quota", lambda quota=quota: quota)
        serve._warn_of_quota(2)
    assert len(said) == 1 and "1.5 CPUs" in said[0]
