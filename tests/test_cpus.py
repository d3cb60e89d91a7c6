"""Quotas of control groups: torch starts a thread for each core of the machine, and a container may have two."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from bark_accel import _cpus, accelerate_bark
from bark_accel.bench.measure import machine_facts


@pytest.fixture
def machine(tmp_path):
    """(the process's groups, root) of these lines and files."""

    def make(groups, **files):
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "root" / name.replace("__", "/").replace("_max", ".max").replace("_cfs", ".cfs")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "groups", tmp_path / "root"

    return make


V1 = "3:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/box\n"


@pytest.mark.parametrize(
    "groups, files, expected",
    [
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000", "a__cpu_max": "150000 100000", "cpu_max": "900000 100000"}, 1.5),
        ("0::/not/seen/from/here\n", {"cpu_max": "50000 100000"}, 0.5),
        ("0::/../other\n", {"cpu_max": "300000 100000"}, 3.0),
        (V1, {"cpu__box__cpu_cfs_quota_us": "400000", "cpu__box__cpu_cfs_period_us": "100000"}, 4.0),
        (V1, {"cpu,cpuacct__cpu_cfs_quota_us": "100000", "cpu,cpuacct__cpu_cfs_period_us": "50000"}, 2.0),
        (V1, {"cpu__box__cpu_cfs_quota_us": "-1", "cpu__box__cpu_cfs_period_us": "100000"}, None),
        (V1, {"memory__box__cpu_max": "100000 100000"}, None),
        ("0::/\n", {"cpu_max": "a few"}, None),
        ("nonsense", {"cpu_max": "0 0"}, None),
        ("", {}, None),
    ],
)
def test_quotas(machine, groups, files, expected):
    assert _cpus.cpu_quota(*machine(groups, **files)) == expected


def test_no_files_are_no_limit(tmp_path):
    assert _cpus.cpu_quota(tmp_path / "none", tmp_path) is None


def test_more_threads_than_the_quota_has_are_said(small_model, monkeypatch, two_threads):
    torch.set_num_threads(2)
    monkeypatch.setattr(_cpus, "cpu_quota", lambda: 1.0)
    with pytest.warns(UserWarning, match=r"torch has 2 threads, .* 1 CPU: .*torch\.set_num_threads\(1\)"):
        accelerate_bark(copy.deepcopy(small_model))
    assert torch.get_num_threads() == 2, "the caller's own choice stays"
    assert machine_facts()["cpu quota"] == 1.0
    for threads, quota in ((1, 1.0), (2, 2.0), (2, None)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(_cpus, "cpu_quota", lambda quota=quota: quota)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            accelerate_bark(copy.deepcopy(small_model))


CORES_OF_TWO = {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" for cpu in range(8)}


@pytest.fixture
def devices(tmp_path):
    """`/sys/devices` of a machine: siblings of each CPU, and the CPUs of fast and slow cores."""

    def make(siblings, **kinds):
        for name, text in kinds.items():
            (tmp_path / f"cpu_{name}").mkdir()
            (tmp_path / f"cpu_{name}" / "cpus").write_text(f"{text}\n")
        for cpu, text in siblings.items():
            folder = tmp_path / f"system/cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{text}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    "usable, siblings, kinds, quota, cores, threads",
    [
        (range(2), {}, {}, None, 2, (2, 0)),
        (range(8), CORES_OF_TWO, {}, None, 4, (4, 0)),
        # 4 fast cores of two threads, 4 slow ones; all usable, no fast one but one thread, slow ones alone.
        (range(12), CORES_OF_TWO, {"core": "0-7", "atom": "8-11"}, None, 4, (4, 0)),
        ([0, 8, 9], CORES_OF_TWO, {"core": "0-7", "atom": "8-11"}, None, 1, (1, 0)),
        ([8, 9], CORES_OF_TWO, {"core": "0-7", "atom": "8-11"}, None, 2, (2, 0)),
        (range(64), {}, {}, None, 64, (16, 0)),
        (range(64), {}, {}, 2.5, 64, (3, 3)),
        (range(64), {}, {}, 0.5, 64, (1, 1)),
        (range(2), {}, {"core": "nonsense"}, None, 2, (2, 0)),
    ],
)
def test_threads_of_a_step_by_machine(devices, usable, siblings, kinds, quota, cores, threads):
    folder = devices(siblings, **kinds)
    assert _cpus.fast_cores(set(usable), folder) == cores
    assert _cpus.step_threads(set(usable), quota, folder) == threads
