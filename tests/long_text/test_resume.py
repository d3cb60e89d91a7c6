"""A run with a work folder that is killed, and goes on."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, build
from support.long_text import SAMPLED, assert_same
from support.parity import accelerated_copy
from support.tiny_text import CHUNKS, TEXT

from bark_accel import StreamSpeed, accelerate_bark, long_form

# Says TEXT with a work folder; a line for each chunk that is ready.
SCRIPT = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from support.bark_models import SMALL, build
from support.tiny_text import TEXT, tiny_processor
from bark_accel import StreamSpeed, accelerate_bark, long_form
torch.set_num_threads(1)
model = accelerate_bark(build(SMALL))
for chunk in long_form(model, tiny_processor(), TEXT, work_dir=sys.argv[2], **json.loads(sys.argv[3])):
    print(chunk.index, flush=True)
"""


def run_killed(folder: Path, options: dict, *, after_chunk: int, wait_s: float) -> int:
    """SIGKILL some time after a chunk; returns how many chunks there are."""
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT, str(tests), str(folder), json.dumps(options)]
    with subprocess.Popen(command, cwd=tests.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if int(line) >= after_chunk:
                break
        else:
            raise AssertionError(process.stderr.read().decode())
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
    return len(list(folder.glob("chunk_*.npz")))


@pytest.mark.parametrize(
    "options, kills", [({"batch_size": 2}, (1, 4)), ({"carry_voice": True}, (2,)), ({"stream": True}, (3,))], ids=str
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(fast, processor, tmp_path, options, kills):
    options, rng = {**SAMPLED, "seed": 3, **options}, random.Random(str(options))
    for after_chunk in kills:
        found = run_killed(tmp_path / "work", options, after_chunk=after_chunk, wait_s=rng.uniform(0, 0.2))
        assert after_chunk < found <= len(CHUNKS)
    speech = long_form(fast, processor, TEXT, work_dir=tmp_path / "work", **options)
    resumed, uninterrupted = speech.waveform(), long_form(fast, processor, TEXT, **options).waveform()
    assert torch.equal(resumed, uninterrupted) and len(resumed) > 0
    files = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert files == [".lock", *(f"chunk_{i:06d}.npz" for i in range(len(CHUNKS))), "manifest.json"]


def test_wherever_a_run_stops_the_next_one_goes_on(fast, processor, tmp_path):
    options = {**SAMPLED, "batch_size": 4}
    expected = list(long_form(fast, processor, TEXT, **options))
    list(long_form(fast, processor, TEXT, work_dir=tmp_path / "whole", **options))
    for chunks in range(len(CHUNKS) + 1):
        # Whatever subset of the files a kill leaves.
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(chunks))
        for index in random.Random(chunks).sample(range(len(CHUNKS)), chunks):
            (folder / f"chunk_{index:06d}.npz").unlink()
        (folder / ".chunk_000001.npz.1.tmp").write_bytes(b"half")
        assert_same(long_form(fast, processor, TEXT, work_dir=folder, **options), expected)
        assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("options", [{}, {"carry_voice": True}], ids=str)
def test_what_is_there_is_not_generated_again(small_model, fast, processor, tmp_path, options, monkeypatch):
    options = {**options, **SAMPLED, "work_dir": tmp_path}
    expected = list(long_form(fast, processor, TEXT, **options))

    def refuse(*args, **kwargs):
        raise AssertionError("generated again")

    monkeypatch.setattr("bark_accel.patches.chunk_speaker.BarkEngine", refuse)
    assert_same(long_form(fast, processor, TEXT, **options), expected)


def test_a_killed_stream_begins_its_chunk_again(fast, processor, tmp_path):
    options = {"do_sample": True, "semantic_max_new_tokens": 60, "stream": True, "policy": "low_latency"}
    expected = list(long_form(fast, processor, TEXT, **options))
    pieces = iter(long_form(fast, processor, TEXT, work_dir=tmp_path, **options))
    while (piece := next(pieces)).index < 2 or piece.final:
        pass
    pieces.close()
    # And one whose end was not heard yet may be there.
    assert {f"chunk_00000{index}.npz" for index in range(2)} <= {file.name for file in tmp_path.glob("chunk*")}
    resumed = list(long_form(fast, processor, TEXT, work_dir=tmp_path, **options))
    for index in range(len(CHUNKS)):
        one, other = (torch.cat([c.audio for c in chunks if c.index == index]) for chunks in (resumed, expected))
        assert torch.equal(one, other)
    assert [c.index for c in resumed if c.final] == list(range(len(CHUNKS)))


def test_a_stream_goes_on_with_the_plan_it_began_with(small_model, processor, tmp_path, monkeypatch):
    """On a machine that is meanwhile slower."""
    options = {"do_sample": True, "fine_temperature": 0.6, "semantic_max_new_tokens": 90, "stream": True}
    whole = []
    for second in (1e-6, 1.0):
        speed = StreamSpeed(second, second, second, second)
        monkeypatch.setattr("bark_accel.patches.stream_plan.measure_speed", lambda *_, s=speed: s)
        model = accelerated_copy(small_model, fit_windows=True)
        kept = long_form(model, processor, TEXT, work_dir=tmp_path, **options)
        whole.append([kept.waveform(), long_form(model, processor, TEXT, **options).waveform()])
        (tmp_path / "chunk_000001.npz").unlink()
    assert torch.equal(whole[0][0], whole[1][0]) and torch.equal(whole[0][0], whole[0][1])
    assert not torch.equal(whole[0][1], whole[1][1]), "another speed has another sound"


CHANGES = {
    "text": {"text": TEXT + " More."},
    "voice": {"voice": {"semantic_prompt": np.arange(9), "coarse_prompt": np.ones((2, 9), int)}},
    "carry_voice": {"carry_voice": True},
    "seed": {"seed": 1},
    "stream": {"stream": True},
    "generation arguments": {"coarse_temperature": 0.6},
}
CHANGES["voice"]["voice"]["fine_prompt"] = np.ones((8, 9), int)


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_not_mixed_in(fast, processor, tmp_path, name):
    arguments = {"text": TEXT, "batch_size": 1, "work_dir": tmp_path, **SAMPLED}
    next(iter(long_form(fast, processor, **arguments)))
    with pytest.raises(ValueError, match=rf"work_dir: .* holds a run with another {name}; name another folder"):
        long_form(fast, processor, **{**arguments, **CHANGES[name]})
    for name, value in (("chunk_pause_s", 2.0), ("batch_size", 3)):  # of no effect on the chunks
        long_form(fast, processor, **{**arguments, name: value})


def as_format_1(folder: Path, batch_size: int) -> None:
    """Make a folder what earlier versions left."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["format"] == 2 and "batch_size" not in manifest
    path.write_text(json.dumps({**manifest, "format": 1, "batch_size": batch_size}))


@pytest.mark.parametrize("options", [{}, {"carry_voice": True}, {"stream": True}], ids=str)
def test_a_folder_of_format_1_that_was_said_one_by_one_is_finished(fast, processor, tmp_path, options):
    options = {**SAMPLED, **options}
    expected = long_form(fast, processor, TEXT, work_dir=tmp_path, **options).waveform()
    as_format_1(tmp_path, 1)
    for index in (1, 4):
        (tmp_path / f"chunk_{index:06d}.npz").unlink()
    assert torch.equal(long_form(fast, processor, TEXT, work_dir=tmp_path, **options).waveform(), expected)
    with pytest.raises(ValueError, match="holds a run with another seed"):
        long_form(fast, processor, TEXT, work_dir=tmp_path, **options, seed=9)


def test_a_folder_of_format_1_of_batches_is_read_or_refused(fast, processor, tmp_path):
    expected = long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED).waveform()
    as_format_1(tmp_path, 4)
    assert torch.equal(long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED).waveform(), expected)
    (tmp_path / "chunk_000005.npz").unlink()
    with pytest.raises(ValueError, match=r"format 1\), which drew 4 chunks at once from one seed; finish it with that"):
        long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)


@pytest.mark.parametrize(
    "weights, sums", [("same", "products native, attention native, codec native"), ("int8", "codec native")]
)
def test_sums_of_another_order_are_not_mixed_in(small_model, processor, tmp_path, monkeypatch, weights, sums):
    """The codec computes in float32 also where the weights are smaller."""
    fast = accelerate_bark(copy.deepcopy(small_model), weights=weights)
    monkeypatch.setenv("BARK_ACCEL_FLOAT32", "native")
    next(iter(long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["float32 sums"] == sums
    monkeypatch.setenv("BARK_ACCEL_FLOAT32", "torch")
    with pytest.raises(ValueError, match="holds a run with another float32 sums"):
        long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)


def test_progress_is_no_part_of_a_run(fast, processor, tmp_path):
    told = []
    first = long_form(fast, processor, "One.", work_dir=tmp_path, progress=lambda *t: told.append(t[0]), **SAMPLED)
    audio = first.waveform()
    assert set(told) == {"semantic", "coarse", "sound"}
    told.clear()
    assert torch.equal(long_form(fast, processor, "One.", work_dir=tmp_path, **SAMPLED).waveform(), audio)


def test_another_model_is_not_mixed_in(small_model, fast, processor, tmp_path):
    next(iter(long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)))
    other = copy.deepcopy(small_model)
    other.fine_acoustics.layers[1].mlp.in_proj.weight.data.mul_(1.01)
    for model in (accelerate_bark(other), accelerate_bark(copy.deepcopy(small_model), weights="int8"), small_model):
        with pytest.raises(ValueError, match="holds a run with another model"):
            long_form(model, processor, TEXT, work_dir=tmp_path, **SAMPLED)


def test_released_weights_are_told_apart(processor, tmp_path):
    for seed in (0, 0, 1):
        model = accelerate_bark(build(SMALL, seed=seed), weights="int8", release_originals=True)
        if seed == 0:
            next(iter(long_form(model, processor, TEXT, work_dir=tmp_path, **SAMPLED)))
            continue
        with pytest.raises(ValueError, match="holds a run with another model"):
            long_form(model, processor, TEXT, work_dir=tmp_path, **SAMPLED)


def test_a_folder_that_became_another_run_s_is_not_mixed_in(fast, processor, tmp_path):
    first, second = (long_form(fast, processor, text, work_dir=tmp_path, **SAMPLED) for text in ("One.", "Two."))
    next(iter(second))
    with pytest.raises(ValueError, match="holds a run with another text"):
        next(iter(first))
    assert torch.equal(second.waveform(), long_form(fast, processor, "Two.", **SAMPLED).waveform())


def test_what_generate_refuses_leaves_the_folder_to_better_arguments(fast, processor, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens"):
        long_form(fast, processor, "One.", work_dir=tmp_path, semantic_max_new_tokens=0)
    assert len(list(long_form(fast, processor, "One.", work_dir=tmp_path, **SAMPLED))) == 1


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "\xff"])
def test_a_damaged_manifest_is_named(fast, processor, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"work_dir: .*manifest\.json"):
        long_form(fast, processor, "One.", work_dir=tmp_path)
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_folder_of_other_things_is_left_alone(fast, processor, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for work_dir in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(ValueError, match="work_dir: expected a new or empty folder, or one of an earlier run"):
            long_form(fast, processor, TEXT, work_dir=work_dir)
    assert os.listdir(tmp_path) == ["letter.txt"]


def make_pipe(path):
    os.mkfifo(path)


def make_broken_link(path):
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("name", [".lock", "manifest.json", "chunk_000001.npz", ".chunk_000000.npz.7.tmp"])
@pytest.mark.parametrize("make", [Path.mkdir, make_pipe, make_broken_link])
def test_what_is_no_file_is_named_before_any_work(fast, processor, tmp_path, name, make):
    options = {"work_dir": tmp_path, **SAMPLED}
    next(iter(long_form(fast, processor, TEXT, batch_size=1, **options)))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"work_dir: expected a file, got a folder, a pipe.*{name}; delete it"):
        long_form(fast, processor, TEXT, batch_size=1, **options)
    assert os.path.lexists(tmp_path / name)


def test_a_lock_that_became_a_pipe_does_not_block(fast, processor, tmp_path):
    speech = long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"work_dir: expected a file, got .*\.lock; delete it"):
        next(iter(speech))


def test_a_folder_that_cannot_be_used_is_named(fast, processor, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"work_dir: .*letter.txt/work cannot be used \(.*Not a directory"):
        long_form(fast, processor, TEXT, work_dir=tmp_path / "letter.txt" / "work")
    with pytest.raises(ValueError, match=r"work_dir: expected a new or empty folder, .* got .*/gone"):
        long_form(fast, processor, TEXT, work_dir=tmp_path / "gone")
    with pytest.raises(TypeError, match="work_dir: expected a path or None, got int"):
        long_form(fast, processor, TEXT, work_dir=3)


def test_a_lock_that_is_a_link_leaves_its_file_whole(fast, processor, tmp_path):
    (tmp_path / "diary").write_text("dear")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".lock").symlink_to(tmp_path / "diary")
    assert list(long_form(fast, processor, "One.", work_dir=tmp_path / "work", **SAMPLED))
    assert (tmp_path / "diary").read_text() == "dear"


@pytest.mark.parametrize("key, value", [("audio", np.array([{}], dtype=object)), ("cut", np.zeros(10**8, np.int8))])
def test_a_chunk_of_something_else_is_named(fast, processor, tmp_path, key, value):
    list(long_form(fast, processor, "One.", work_dir=tmp_path, **SAMPLED))
    file = tmp_path / "chunk_000000.npz"
    with np.load(file) as arrays:
        np.savez_compressed(file, **{**arrays, key: value})
    with pytest.raises(ValueError, match=rf"chunk_000000.npz is damaged .*{key}: expected"):
        list(long_form(fast, processor, "One.", work_dir=tmp_path, **SAMPLED))


def test_a_damaged_chunk_is_named(fast, processor, tmp_path):
    list(long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED))
    file = tmp_path / "chunk_000002.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"chunk_000002.npz is damaged .* delete it to generate it again"):
        list(long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED))


def test_two_runs_do_not_share_a_folder(fast, processor, tmp_path):
    speech = long_form(fast, processor, TEXT, work_dir=tmp_path, **SAMPLED)
    chunks = iter(speech)
    next(chunks)
    with pytest.raises(ValueError, match="another run is using"):
        next(iter(speech))
    chunks.close()
    assert len(list(speech)) == len(CHUNKS)


def test_numbers_of_numpy_are_compared(fast, processor, tmp_path):
    for number in (30, np.int64(30)):
        options = {**SAMPLED, "seed": type(number)(1), "semantic_max_new_tokens": number}
        long_form(fast, processor, "One.", work_dir=tmp_path, **options).waveform()


def test_arguments_that_cannot_be_compared_are_refused(fast, processor, tmp_path):
    with pytest.raises(ValueError, match="work_dir: expected generation arguments that a later run can compare"):
        long_form(fast, processor, TEXT, work_dir=tmp_path / "work", semantic_logits_processor=[object()])
    assert not (tmp_path / "work").exists()
