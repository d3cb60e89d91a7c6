"""Outputs are checked before any work, and their names decide their formats."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.command import run

from bark_accel import small_bark_path
from bark_accel.cli.console import UserError
from bark_accel.cli.outputs import SOUND_SUFFIXES, check_file, check_folder

# Where the work would begin: none of the tests gets there.
WORK = ("bark_accel.cli.demo.load", "bark_accel.cli.speech.load", "bark_accel.bench.models.random_bark")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("hello")
    return file


@pytest.fixture
def no_work(monkeypatch):
    def work(*arguments):
        raise AssertionError("began before it had checked its outputs")

    for name in WORK:
        monkeypatch.setattr(name, work)


def commands(text: Path) -> dict[str, tuple[object, ...]]:
    """Each command and option that names a file to be written, up to that name."""
    return {
        "say": ("say", "hello", "-o"),
        "stream": ("say", "hello", "--stream", "-o"),
        "read": ("read", text, "-o"),
        "json": ("bench", "--json"),
        "plot": ("bench", "--plot"),
        "demo": ("demo", "--out"),
    }


@pytest.mark.parametrize("command", ["say", "stream", "read", "json", "plot"])
def test_a_file_that_cannot_be_written_is_refused_at_once(no_work, text, tmp_path, command):
    suffix = {"json": ".json", "plot": ".png"}.get(command, ".wav")
    (tmp_path / f"folder{suffix}").mkdir()
    for name, message in (
        (f"folder{suffix}", "expected a file, got the folder"),
        (f"missing/a{suffix}", "expected a file in an existing folder"),
        (f"a.txt/a{suffix}", "expected a file in an existing folder"),
        (f"{'a' * 300}{suffix}", "File name too long"),
    ):
        result = run(*commands(text)[command], tmp_path / name)
        assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
        assert message in result.output


@pytest.mark.parametrize("command", ["say", "stream", "read", "plot"])
@pytest.mark.parametrize("name", ["a", "a.txt", "a.m4a", ".wav"])
def test_a_name_that_says_no_format_is_refused(no_work, text, tmp_path, command, name):
    result = run(*commands(text)[command], tmp_path / name)
    assert result.exit_code == 2 and "expected a name that ends in ." in result.output, result.output


def test_a_folder_that_cannot_be_written_is_refused_at_once(no_work, text, tmp_path):
    (tmp_path / "out" / "stock.wav").mkdir(parents=True)
    for name, message in (
        ("a.txt", "--out: expected a folder, got the file"),
        ("a.txt/new", "--out: expected a folder, got the file"),
        ("out", "--out: expected a file, got the folder"),
    ):
        result = run("demo", "--out", tmp_path / name)
        assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
        assert message in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that root cannot write either")
def test_permissions_are_asked_for():
    for check, path in ((check_file, Path("/proc/self/a.wav")), (check_folder, Path("/proc/self/new"))):
        with pytest.raises(UserError, match=r"--out: cannot write /proc/self/\S+: "):
            check("--out", path)


def test_a_disk_that_is_full_is_noticed(no_work, text, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        results = [run(*command, tmp_path / "new.wav") for command in (("say", "hello", "-o"), ("demo", "--out"))]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for result in results:
        assert result.exit_code == 2 and f"--out: cannot write {tmp_path}/new.wav: File too large" in result.output


def test_a_file_that_stands_on_a_full_disk_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"of yesterday")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"a\.wav: No space left on device"):
        check_file("--out", tmp_path / "a.wav")


def test_checking_leaves_no_trace(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"of yesterday")
    before = (tmp_path / "a.wav").stat().st_mtime_ns
    check_file("--out", tmp_path / "a.wav")
    check_file("--out", tmp_path / "b.wav")
    check_folder("--out", tmp_path / "new" / "folder", ["a.wav"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"of yesterday" and (tmp_path / "a.wav").stat().st_mtime_ns == before


@pytest.mark.parametrize("suffix", [*SOUND_SUFFIXES, ".MP3"])
def test_the_same_name_is_the_same_format(text, tmp_path, suffix):
    """Whichever command writes it."""
    formats, rms = [], []
    for command in ("say", "stream", "read"):
        file = tmp_path / f"{command}{suffix}"
        result = run(*commands(text)[command], file)
        assert result.exit_code == 0, result.output
        facts = soundfile.info(file)
        formats.append((facts.format, facts.subtype, facts.samplerate, facts.channels))
        rms.append(np.sqrt(np.mean(soundfile.read(file)[0] ** 2)))
    assert len(set(formats)) == 1 and formats[0][0] == suffix[1:].upper() and formats[0][2:] == (16_000, 1)
    assert min(rms) > 0.01


def test_a_disk_that_fills_meanwhile_is_told_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("bark_accel.cli.outputs._ROOM_BYTES", 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        result = run("say", "hello, my dog is cute", "-o", tmp_path / "a.wav", "--model", small_bark_path())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 2 and f"cannot write {tmp_path}/a.wav: File too large" in result.output, result.output
