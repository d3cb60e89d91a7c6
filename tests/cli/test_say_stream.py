"""`bark-accel say --stream`: into a file, into a pipe, to a player that leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.command import run
from support.waiting import LIMIT_S

from bark_accel.cli import playback

STREAM = ("--stream", "--policy", "preview", "--max-seconds", 1.0)


def test_say_streams_into_a_file(checkpoint, tmp_path):
    whole, streamed = tmp_path / "whole.wav", tmp_path / "streamed.wav"
    assert run("say", "hello", "-o", whole, "--model", checkpoint, "--max-seconds", 1.0).exit_code == 0
    result = run("say", "hello", "-o", streamed, "--model", checkpoint, *STREAM)
    assert result.exit_code == 0, result.output
    for words in ("s of audio", "first sound after", "real-time factor", f"wrote {streamed.name}"):
        assert words in result.output.replace(f"{tmp_path}/", "")
    assert soundfile.info(streamed).frames == soundfile.info(whole).frames > 0


def test_a_streamed_file_is_valid_while_it_grows(tmp_path):
    path = tmp_path / "a.wav"
    with playback.sink(path, 24_000) as write:
        for chunks in (1, 2, 3):
            assert write(np.full(100, 0.5, dtype=np.float32))
            assert soundfile.info(path).frames == 100 * chunks and soundfile.info(path).samplerate == 24_000
    np.testing.assert_allclose(soundfile.read(path)[0], np.full(300, 0.5), atol=1e-4)


def test_a_stream_that_fails_at_once_leaves_the_file_alone(checkpoint, tmp_path):
    path, voice = tmp_path / "a.wav", tmp_path / "voice.npz"
    path.write_bytes(b"of yesterday")
    np.savez(voice, semantic_prompt=np.zeros(3, dtype=np.int64))
    result = run("say", "hello", "-o", path, "--model", checkpoint, "--voice", voice, *STREAM)
    assert result.exit_code == 2 and "expected the keys" in result.output
    assert path.read_bytes() == b"of yesterday"


def test_say_streams_into_a_pipe(checkpoint, tmp_path):
    """16-bit samples and nothing else on stdout, all words on stderr."""
    file = tmp_path / "streamed.wav"
    assert run("say", "hello", "-o", file, "--model", checkpoint, *STREAM).exit_code == 0
    result = run("say", "hello", "-o", "-", "--model", checkpoint, *STREAM)
    assert result.exit_code == 0, result.stderr
    samples = np.frombuffer(result.stdout_bytes, dtype="<i2")
    np.testing.assert_allclose(samples, soundfile.read(file, dtype="int16")[0], atol=1)
    assert "real-time factor" in result.stderr and "wrote" not in result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/guide/streaming.md"])
def test_the_player_is_told_the_rate_of_the_small_bark(page):
    """Where a page's command names no model; the command itself says which rate its samples have."""
    result = run("say", "hello", "-o", "-", "--stream")
    assert "raw PCM: s16le, mono, 16000 Hz" in result.stderr
    lines = [
        line
        for line in (Path(__file__).parents[2] / page).read_text().splitlines()
        if "aplay" in line and "--model" not in line
    ]
    assert lines and all("-o - | aplay -f S16_LE -r 16000" in line for line in lines)


def test_say_ends_with_its_player(checkpoint):
    command = [sys.executable, "-m", "bark_accel", "say", "hello", "-o", "-", "--model", str(checkpoint), "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(LIMIT_S) == 0, errors
    assert "closed the pipe" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-o", "-"], "--out -: expected --stream with it"),
        (["-o", "x.wav", "--policy", "exact"], "--policy exact: expected --stream with it"),
        (["-o", "x.wav", "--stream", "--policy", "fast"], "expected one of exact, low_latency, preview, got fast"),
    ],
)
def test_say_explains_bad_streaming_options(arguments, message):
    result = run("say", "hello", *arguments, "--model", "not/looked/at")
    assert result.exit_code == 2 and message in " ".join(result.output.split())
