"""`bark-accel read` and `--save-voice`."""

from __future__ import annotations

import fcntl

import numpy as np
import pytest
import soundfile
import torch
from support.bark_models import SMALL, SUNO, build
from support.command import run
from support.tiny_text import CHUNKS, TEXT, tiny_processor

from bark_accel import accelerate_bark, load_voice_preset, long_form
from bark_accel.bench.models import load_bark
from bark_accel.cli.read import _write

SHORT = ("--max-seconds", "0.3")


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """With a tokenizer; reads 16 tokens at once."""
    folder = tmp_path_factory.mktemp("small-bark")
    build(SMALL).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def whole(checkpoint):
    loaded = load_bark(str(checkpoint))
    model = accelerate_bark(loaded.model)
    return long_form(model, loaded.processor, TEXT, semantic_max_new_tokens=15).waveform().numpy()


def test_a_file_becomes_audio(checkpoint, book, tmp_path, whole):
    out, voice = tmp_path / "book.wav", tmp_path / "me.npz"
    result = run("read", book, "-o", out, "--model", checkpoint, *SHORT, "--save-voice", voice)
    assert result.exit_code == 0, result.output
    assert f"{len(CHUNKS)} chunks" in result.output and f"{len(CHUNKS)}/{len(CHUNKS)}" in result.output
    samples, rate = soundfile.read(out)
    np.testing.assert_allclose(samples, np.clip(whole, -1, 1), atol=1e-4)
    assert rate == 24_000 and load_voice_preset(voice)["semantic_prompt"].shape == (15,)
    again = run("read", book, "-o", out, "--model", checkpoint, *SHORT, "--voice", voice, "--carry-voice")
    assert again.exit_code == 0, again.output


def test_a_work_folder_is_gone_on_with(checkpoint, book, tmp_path, whole):
    command = ("read", book, "-o", tmp_path / "a.wav", "--model", checkpoint, "--work-dir", tmp_path / "w")
    assert run(*command, *SHORT).exit_code == 0
    (tmp_path / "a.wav").unlink()
    (tmp_path / "w" / "chunk_000005.npz").unlink()
    result = run(*command, *SHORT)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav")[0], np.clip(whole, -1, 1), atol=1e-4)
    result = run(*command, *SHORT, "--seed", 5)
    assert result.exit_code == 2 and "holds a run with another seed" in words(result.output)


def test_a_long_book_is_not_held_in_memory(checkpoint, tmp_path):
    loaded = load_bark(str(checkpoint))
    speech = long_form(accelerate_bark(loaded.model), loaded.processor, TEXT, semantic_max_new_tokens=15)
    ended, _, heard = _write(speech, tmp_path / "a.wav")
    assert heard is not None and len(ended) == len(CHUNKS)
    assert all(chunk.preset is None and len(chunk.audio) == 0 for chunk in ended)


def test_a_file_streams_into_a_pipe(checkpoint, book, tmp_path):
    options = (book, "--model", checkpoint, *SHORT, "--stream", "--policy", "preview")
    piped, filed = run("read", *options, "-o", "-"), run("read", *options, "-o", tmp_path / "a.wav")
    assert piped.exit_code == filed.exit_code == 0, piped.stderr + filed.output
    samples = np.frombuffer(piped.stdout_bytes, dtype="<i2")
    np.testing.assert_array_equal(samples, soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
    assert len(samples) > 0 and "wrote the audio" in piped.stderr


def test_a_checkpoint_without_a_tokenizer_says_words(book, tmp_path):
    build(SUNO).save_pretrained(tmp_path / "model")
    result = run("read", book, "-o", tmp_path / "a.wav", "--model", tmp_path / "model", *SHORT)
    assert result.exit_code == 0, result.output
    assert "no usable tokenizer" in result.output and ", 2 chunks" in result.output


def test_chunks_that_fill_the_model_are_named(checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("One. Two. Three.")
    torch.manual_seed(0)
    result = run("read", tmp_path / "a.txt", "-o", tmp_path / "a.wav", "--model", checkpoint)
    assert result.exit_code == 0, result.output
    assert "(chunk 1" in result.output and "lower --characters-per-second" in result.output


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_what_was_heard_is_saved_as_a_voice(checkpoint, tmp_path, stream):
    out, voice = tmp_path / "a.wav", tmp_path / "me.npz"
    result = run("say", "hello dog", "-o", out, "--model", checkpoint, "--save-voice", voice, *SHORT, *stream)
    assert result.exit_code == 0, result.output
    saved = load_voice_preset(voice)
    assert saved["semantic_prompt"].shape == (15,) and saved["fine_prompt"].shape == (8, 22)
    with_voice = run("say", "hello", "-o", out, "--model", checkpoint, "--voice", voice, *SHORT)
    assert with_voice.exit_code == 0, with_voice.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["hello", "--save-voice", "me.wav"], "--save-voice: expected a name that ends in .npz, got me.wav"),
        (["hello", "--save-voice", "none/me.npz"], "--save-voice: expected a file in an existing folder"),
        (["hello", "--save-voice", "me.npz", "--stream", "--policy", "preview"], "expected another --policy"),
    ],
)
def test_bad_options_are_explained_at_once(tmp_path, arguments, message):
    result = run("say", *arguments, "-o", tmp_path / "a.wav", "--model", "not/looked/at")
    assert result.exit_code == 2 and message in words(result.output), result.output


def test_a_voice_to_be_carried_needs_more_than_a_preview(checkpoint, book, tmp_path):
    options = ("--carry-voice", "--stream", "--policy", "preview", *SHORT)
    result = run("read", book, "-o", tmp_path / "a.wav", "--model", checkpoint, *options)
    assert result.exit_code == 2 and "carry_voice: expected another policy" in words(result.output)


def test_one_chunk_is_no_chunks(checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    result = run("read", tmp_path / "a.txt", "-o", tmp_path / "a.wav", "--model", checkpoint, *SHORT)
    assert result.exit_code == 0 and ", 1 chunk, in" in words(result.output), result.output


def test_a_work_folder_that_cannot_be_made_is_refused_at_once(book, tmp_path):
    (tmp_path / "file").write_text("")
    options = ("--work-dir", tmp_path / "file" / "parts", "--model", "not/looked/at")
    result = run("read", book, "-o", tmp_path / "a.wav", *options)
    assert result.exit_code == 2 and "--work-dir: expected a folder, got the file" in words(result.output)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_work_folder_that_fails_later_is_explained(checkpoint, book, tmp_path, damaged):
    command = ("read", book, "-o", tmp_path / "a.wav", "--model", checkpoint, "--work-dir", tmp_path / "w", *SHORT)
    assert run(*command).exit_code == 0
    if damaged:
        (tmp_path / "w" / "chunk_000002.npz").write_bytes(b"no archive")
        result, message = run(*command), "is damaged"
    else:
        with (tmp_path / "w" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result, message = run(*command), "another run is using"
    assert result.exit_code == 2 and message in words(result.output), result.output
