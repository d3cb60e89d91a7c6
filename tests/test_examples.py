"""The programs in examples/, run with the small Bark."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from support.stock_limits import skip_where_stock_fails
from support.waiting import LIMIT_S

EXAMPLES = Path(__file__).parents[1] / "examples"


PATHS = os.pathsep.join([str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def run(tmp_path):
    """Runs an example in an empty folder; a player of that folder is found first."""

    def run(name: str, *arguments: str) -> str:
        environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": PATHS}
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def seconds(path: Path) -> float:
    return soundfile.info(path).duration


def test_every_example_is_run():
    tested = {name for name in globals() if name.startswith("test_example_")}
    assert tested == {f"test_example_{path.stem}" for path in EXAMPLES.glob("*.py")}


def test_example_speaker(run, tmp_path):
    player = tmp_path / "aplay"
    player.write_text("#!/bin/sh\ncat > played.raw\n")
    player.chmod(player.stat().st_mode | stat.S_IXUSR)
    run("speaker.py", "one two three")
    assert (tmp_path / "played.raw").stat().st_size > 4 * 16_000 * 0.5


def test_example_audiobook(run, tmp_path):
    (tmp_path / "book.txt").write_text("one two three.\n\nfour five six.")
    assert run("audiobook.py", "book.txt", "book.wav").splitlines() == ["one two three.", "four five six."]
    first = (tmp_path / "book.wav").read_bytes()
    run("audiobook.py", "book.txt", "book.wav")
    assert (tmp_path / "book.wav").read_bytes() == first and seconds(tmp_path / "book.wav") > 1


def test_example_voices(run, tmp_path):
    run("voices.py", "out")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"slt", "rms", "any"}
    assert all(seconds(path) > 0.3 for path in (tmp_path / "out").iterdir())


def test_example_server_loop(run):
    lines = run("server_loop.py").splitlines()
    assert lines[-1] == "other tasks go on" and lines[0].endswith("s so far")


def test_example_tts_pipeline(run, tmp_path):
    skip_where_stock_fails("text-to-speech pipeline")
    run("tts_pipeline.py", "spoken.wav")
    assert seconds(tmp_path / "spoken.wav") > 0.3


def test_example_suno_script(run, tmp_path):
    run("suno_script.py", "said.wav", "one two three", "slt")
    run("suno_script.py", "again.wav", "four", "said.wav.npz")
    assert seconds(tmp_path / "said.wav") > 0.3 and seconds(tmp_path / "again.wav") > 0.1


def test_example_gradio_app(tmp_path):
    """Another program asks for speech, as the page does when its button is clicked."""
    client = pytest.importorskip("gradio_client", reason="gradio is not installed: pip install gradio")
    pytest.importorskip("gradio", reason="gradio is not installed: pip install gradio")
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg, by which gradio streams sound, is not installed")
    environment = {**os.environ, "PYTHONPATH": PATHS, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(EXAMPLES / "gradio_app.py")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as app:
        try:
            url = next(line for line in app.stdout if "http://" in line).split()[-1]
            asked = client.Client(url, verbose=False, download_files=str(tmp_path)).submit(
                "one two three four five", "slt", 0, api_name="/speak"
            )
            playlist = Path(asked.result(timeout=LIMIT_S)).read_text()
        finally:
            app.terminate()
    lengths_s = [float(length) for length in re.findall(r"#EXTINF:([\d.]+)", playlist)]
    assert len(lengths_s) > 1 and sum(lengths_s) > 1, "pieces, the first before the last was there"
