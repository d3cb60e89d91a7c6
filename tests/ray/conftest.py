from __future__ import annotations

import os

import pytest

# Before Ray is imported, here and in its workers: it calls nobody, and writes no token into the home folder.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A local cluster of processes, with a GPU that only Ray believes in."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    place = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 100 << 20}
    ray.init(address="local", num_cpus=4, num_gpus=1, logging_level="warning", log_to_driver=False, **place)
    yield
    ray.shutdown()
