"""What a process holds does not grow with the number of generations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
# A leak of one key/value cache a generation would be 13 MiB between the first ten and the last ten of 50. Convolutions
# that oneDNN keeps for each new length stay below 5.
MOST_GROWTH_KIB = 8 * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_fifty_generations_hold_no_more_than_ten():
    """Of varying length, single and in batches, with and without a preset, streamed or not, with int8 drafts."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    # One heap for all threads, so that a thread's own is not counted.
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
    options = json.dumps({"weights": "float16", "speculate": True})
    command = [sys.executable, TESTS / "support" / "memory_use.py", "50", options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    first, last = (max(peaks) for peaks in (held["peak_kib"][:10], held["peak_kib"][-10:]))
    print(f"peak of the first ten generations {first} KiB, of the last ten {last} KiB; {held['tensors'][-1]} tensors")
    assert last - first < MOST_GROWTH_KIB
    assert max(held["tensors"][-10:]) <= max(held["tensors"][:10])
    # That of two rows: the warm-up had them.
    assert len(set(held["cache_bytes"])) == 1 and held["cache_bytes"][0] > 0
