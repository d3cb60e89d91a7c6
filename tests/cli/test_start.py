"""How the command line starts, fails and ends: its extra, `--help`, bugs and bad input, a reader that leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from support.command import run
from support.waiting import LIMIT_S

import bark_accel
from bark_accel.cli import say

ROOT = Path(__file__).parents[2]
EXTRA = ("typer", "rich", "matplotlib", "soundfile")


def start(*arguments: str, without: tuple[str, ...] = (), **options):
    """The command in a process of its own, where the packages `without` cannot be imported."""
    code = f"import sys; sys.modules.update(dict.fromkeys({without!r})); sys.argv[0] = 'bark-accel'"
    code += "; from bark_accel.__main__ import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S, **options)


@pytest.mark.parametrize("command", [(), ("say",), ("read",), ("demo",), ("bench",), ("info",)])
def test_help_needs_no_torch(command):
    done = start(*command, "--help", without=("torch", "numpy", "transformers"))
    assert done.returncode == 0 and "Usage: bark-accel" in done.stdout, done.stderr


def test_the_version_is_told():
    done = start("--version", without=("torch",))
    assert (done.returncode, done.stdout) == (0, f"bark_accel {bark_accel.__version__}\n")


@pytest.mark.parametrize("missing", EXTRA)
def test_a_missing_extra_is_named_in_one_line(missing):
    done = start("say", "hello", "-o", "a.wav", without=(missing,))
    expected = f"error: the command line needs {missing}: run pip install 'bark_accel[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_the_library_needs_no_extra():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRA!r})); import bark_accel as b; from bark_accel import *; "
    )
    code += "from transformers import BarkModel; b.accelerate_bark(BarkModel.from_pretrained(small_bark_path()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


def test_the_project_lists_what_is_needed():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [entry.partition(">")[0] for entry in project["optional-dependencies"]["cli"]]
    assert sorted(extra) == sorted(EXTRA)
    assert [entry.partition(">")[0] for entry in project["dependencies"]] == ["transformers", "numpy", "packaging"]


def fail(monkeypatch, error: Exception) -> None:
    def model(*arguments):
        raise error

    monkeypatch.setattr(say, "load_speaker", model)


@pytest.mark.parametrize(
    "bug", [TypeError("unsupported operand"), ValueError("too many values"), KeyError("x"), ImportError("x", name="x")]
)
def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path, bug):
    fail(monkeypatch, bug)
    result = run("say", "hello", "-o", str(tmp_path / "a.wav"))
    assert result.exit_code == 1 and result.exception is bug and "error:" not in result.output


@pytest.mark.parametrize("expected", [OSError("no model"), ImportError("a package is missing"), ValueError("is NaN")])
@pytest.mark.parametrize("debug", ["1", "0"])
def test_an_expected_error_is_one_line_but_for_debugging(monkeypatch, tmp_path, expected, debug):
    fail(monkeypatch, expected)
    monkeypatch.setenv("BARK_ACCEL_DEBUG", debug)
    result = run("say", "hello", "-o", str(tmp_path / "a.wav"))
    if debug == "1":
        assert result.exception is expected
    else:
        assert (result.exit_code, result.output) == (2, f"error: {expected}\n")


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_the_sound_is_written_though_nobody_reads_the_words(tmp_path, stream):
    reading, writing = os.pipe()
    # An EnCodec of Transformers 4.46 warns of itself.
    quiet = ["-W", "ignore:To copy construct from a tensor"]
    command = [sys.executable, *quiet, "-m", "bark_accel", "say", "hello", "-o", str(tmp_path / "a.wav"), *stream]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        os.close(reading)
        assert process.stderr.read() == "" and process.wait(LIMIT_S) == 0
    assert soundfile.info(tmp_path / "a.wav").frames > 0


@pytest.mark.parametrize("command", ["say", "say --stream", "read"])
def test_every_line_ends_where_there_is_no_terminal(tmp_path, command):
    name, *options = command.split()
    (tmp_path / "a.txt").write_text("hello")
    text = "hello" if name == "say" else str(tmp_path / "a.txt")
    result = run(name, text, *options, "-o", str(tmp_path / "a.wav"))
    *_, progress, last, after = result.output.split("\n")
    assert last.startswith("wrote ") and after == "", result.output
    assert "wrote" not in progress and progress.strip()
