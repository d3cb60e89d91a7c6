"""Corpora on a local Ray cluster of several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import run
from support.waiting import until

from bark_accel import batch_inputs

pa = pytest.importorskip("pyarrow", reason="Ray's data library is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="Ray's data library is not installed")
ray_data = pytest.importorskip("ray.data", reason="Ray's data library is not installed")

from ray import cloudpickle  # noqa: E402

from bark_accel.ray import Synthesizer, synthesize_corpus  # noqa: E402
from bark_accel.ray.corpus import _check_room  # noqa: E402
from bark_accel.ray.parts import PartFolder  # noqa: E402

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEXTS = pa.table(
    {
        "id": [f"row {i}" for i in range(14)],
        "text": [" ".join(WORDS[i % 5 : i % 5 + 4]) for i in range(13)] + ["eleven"],
        "voice": ["slt", None, "rms", "nobody", *["slt"] * 10],
    }
)
FAILED = {3: "'nobody'", 13: "got eleven"}


def read(folder: Path):
    """Columns of a corpus in the order of its rows: all but what tells of one run, and the reports."""
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    reports = [json.loads(row.pop("report")) for row in rows]
    files = {name: pq.read_table(folder / name, partitioning=None).to_pylist() for name in {r["file"] for r in rows}}
    seen = {name: 0 for name in files}
    for row in rows:
        file, seen[row["file"]] = row["file"], seen[row["file"]] + 1
        row["audio"] = files[file][seen[file] - 1]["audio"]
    assert seen == {name: len(table) for name, table in files.items()}
    return rows, reports


class HeldFolder(PartFolder):
    """Whoever has written a part goes on once the file `hold` beside the folder is gone."""

    def write(self, part: int, table: pa.Table) -> None:
        super().write(part, table)
        while (self.folder.parent / "hold").exists():
            time.sleep(0.01)


def kill_one_that_works(folder: Path, killed: list[int]) -> None:
    """Kill a process that has made a part and not told of it; adds the number of parts that were there."""
    try:
        until(lambda: [*(folder / "parts").glob("part-*.parquet")], every_s=0.01)
        made = [*(folder / "parts").glob("part-*.parquet")]
        os.kill(json.loads(pq.read_table(made[0])["report"][0].as_py())["pid"], signal.SIGKILL)
        killed.append(len(made))
    finally:
        (folder.parent / "hold").unlink()


@pytest.fixture(scope="module")
def spoken(cluster, tmp_path_factory):
    """The corpus as two actors said it, one of which was killed in the middle."""
    folder, killed = tmp_path_factory.mktemp("corpus") / "two", []
    (folder.parent / "hold").touch()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no process of the cluster can import this
    killer = threading.Thread(target=kill_one_that_works, args=(folder, killed), daemon=True)
    killer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bark_accel.ray.corpus.PartFolder", HeldFolder)
        summary = synthesize_corpus(TEXTS, folder, num_actors=2, rows_per_part=2)
    killer.join()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return folder, summary, killed[0]


@pytest.fixture(scope="module")
def alone():
    """The corpus as one process says it without Ray, all rows in one batch."""
    synthesizer = Synthesizer(threads=1)
    yield synthesizer
    synthesizer.close()


def test_a_killed_worker_loses_and_doubles_nothing(spoken, alone):
    folder, summary, made_before = spoken
    rows, reports = read(folder)
    assert [row["id"] for row in rows] == TEXTS["id"].to_pylist()
    assert (summary.rows, summary.said_now, summary.failed) == (14, 14, 2)
    assert made_before <= 2 and len({report["pid"] for report in reports}) > 1
    seeds = pa.array([row["seed"] for row in rows], pa.int64())
    expected = alone(TEXTS.append_column("seed", seeds)).drop_columns("report").to_pylist()
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert summary.seconds == sum(row["seconds"] or 0 for row in rows) > 10


def test_failed_rows_are_kept_with_their_error(spoken):
    rows, _ = read(spoken[0])
    for i, row in enumerate(rows):
        if i in FAILED:
            assert FAILED[i] in row["error"] and row["audio"] is None and row["seconds"] is None
        else:
            assert row["error"] is None and len(row["audio"]) == row["seconds"] * row["sampling_rate"] > 4000


def test_one_actor_goes_on_where_two_were_stopped(spoken, tmp_path):
    """And says the same, from the command line, on half of a GPU that is none."""
    folder = tmp_path / "resumed"
    shutil.copytree(spoken[0], folder)
    (folder / "manifest.parquet").unlink()
    for part in (1, 4, 6):
        (folder / f"parts/part-{part:06d}.parquet").unlink()
    (folder / "parts/.part-000001.parquet.1.tmp").write_bytes(b"left by a process that was killed")
    pq.write_table(TEXTS, tmp_path / "texts.parquet", row_group_size=3)
    options = ["--rows-per-part", "2", "--num-gpus", "0.5", "--device", "cpu"]
    done = run("corpus", str(tmp_path / "texts.parquet"), str(folder), *options)
    assert done.exit_code == 0, done.output
    output = " ".join(done.output.split())
    assert "14 rows, 6 of them said now" in output and "2 rows failed" in output
    (rows, reports), (expected, before) = read(folder), read(spoken[0])
    assert rows == expected and not list(folder.rglob("*.tmp"))
    again = [i for i, (now, then) in enumerate(zip(reports, before, strict=True)) if now != then]
    assert again == [2, 3, 8, 9, 12, 13]
    assert {reports[i]["gpus"] for i in again} == {0.5} and {report["gpus"] for report in before} == {0.0}


def test_two_threads_say_what_generate_says_on_two(cluster, alone, two_threads):
    """In a pipeline of the user's own."""
    options = {"fn_constructor_kwargs": {"max_seconds": 1.5}, "num_cpus": 2, "batch_size": 4}
    pool = ray_data.ActorPoolStrategy(size=1)
    rows = ray_data.from_arrow(TEXTS.slice(0, 3)).map_batches(Synthesizer, compute=pool, **options).take_all()
    model, processor = alone._loaded.model, alone._loaded.processor
    assert {json.loads(row["report"])["threads"] for row in rows} == {2}
    for row in sorted(rows, key=lambda row: row["id"]):
        inputs = batch_inputs(processor, [row["text"]], [row["voice"]])
        torch.manual_seed(row["seed"])
        audio = model.generate(**inputs, semantic_max_new_tokens=38)[0]
        np.testing.assert_array_equal(np.asarray(row["audio"], dtype=np.float32), audio.numpy())


@pytest.mark.parametrize("options, got", [({"threads": 5}, "5 and 0"), ({"num_gpus": 2}, "1 and 2")])
def test_an_actor_that_no_node_has_room_for_is_refused(cluster, tmp_path, options, got):
    """Ray would wait for such a node without end."""
    with pytest.raises(ValueError, match=rf"at most the CPUs and GPUs of one node .*\(4 and 1\), got {got}$"):
        synthesize_corpus(TEXTS, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    pq.write_table(TEXTS, tmp_path / "texts.parquet")
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = run("corpus", str(tmp_path / "texts.parquet"), str(tmp_path / "out"), *arguments)
    assert done.exit_code == 2 and f"(4 and 1), got {got}" in " ".join(done.output.split())


def test_an_autoscaler_may_start_larger_nodes(cluster, monkeypatch):
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", object)
    _check_room(threads=99, num_gpus=0)
