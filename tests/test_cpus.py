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
