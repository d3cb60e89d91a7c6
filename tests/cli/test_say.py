"""`bark-accel say` into a file: voices, words that the small Bark does not know, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from support.command import run

from bark_accel import small_bark_path


@pytest.mark.parametrize("options", [[], ["--stream"], ["--voice", small_bark_path() / "speaker_embeddings/rms.npz"]])
def test_say_speaks_with_the_small_bark_where_no_model_is_named(tmp_path, options):
    result = run("say", "Hello, my dog is 4!", "-o", tmp_path / "a.wav", "--max-seconds", 1, *options)
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "a.wav").samplerate == 16_000 and soundfile.info(tmp_path / "a.wav").frames > 0


@pytest.mark.parametrize("as_file", [False, True])
def test_words_that_the_small_bark_does_not_know_are_named(tmp_path, as_file):
    text, out = "Hello Zorro, my crocodile is cute; hello Zorro", tmp_path / "a.wav"
    (tmp_path / "a.txt").write_text(text)
    result = run(*(["read", tmp_path / "a.txt"] if as_file else ["say", text]), "-o", out)
    assert result.exit_code == 2 and not out.exists()
    message = " ".join(result.output.split())
    assert "does not know: Zorro, crocodile. It only says digits and these words: zero, one, " in message
    assert "--model suno/bark-small" in message


def test_the_tokenizers_own_signs_are_no_words(tmp_path):
    result = run("say", "hello [PAD] five [UNK]", "-o", tmp_path / "a.wav")
    assert result.exit_code == 2 and "does not know: [PAD], [UNK]. It only says" in " ".join(result.output.split())


@pytest.mark.parametrize("as_file", [False, True])
def test_a_text_of_signs_alone_has_no_words(tmp_path, as_file):
    (tmp_path / "a.txt").write_text("!!!")
    result = run(*(["read", tmp_path / "a.txt"] if as_file else ["say", "!!!"]), "-o", tmp_path / "a.wav")
    assert result.exit_code == 2 and "the text has no words" in " ".join(result.output.split())


def test_say_writes_a_file_with_a_voice(checkpoint, tmp_path):
    voice, out = tmp_path / "voice.npz", tmp_path / "out.wav"
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 1024, (8, 60))
    np.savez(voice, semantic_prompt=rng.integers(0, 10_000, 40), coarse_prompt=fine[:2], fine_prompt=fine)
    result = run("say", "hello there", "-o", out, "--model", checkpoint, "--voice", voice, "--max-seconds", 0.2)
    assert result.exit_code == 0, result.output
    samples, rate = soundfile.read(out)
    assert rate == 24_000 and len(samples) == 15 * 320
    assert "wrote" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["   "], "the text is empty"),
        (["hello", "--model", "no/such/folder/anywhere"], "no/such/folder/anywhere"),
        (["hello", "--voice", "missing.npz"], "there is no file missing.npz"),
        (["hello", "--voice", "v2/en_speaker_6"], "no named voices"),
        (["hello", "--max-seconds", "100"], "expected at most"),
        (["hello", "--seed", "-1"], "--seed"),
    ],
)
def test_say_explains_bad_input(checkpoint, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in arguments else ["--model", checkpoint]
    result = run("say", *arguments, "-o", tmp_path / "out.wav", *model)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out.wav").exists()


def test_say_refuses_a_voice_of_the_wrong_kind(checkpoint, tmp_path):
    voice = tmp_path / "voice.npz"
    for content, message in (({"other": np.zeros(3)}, "expected the keys"), (None, "voice.npz")):
        if content is None:
            voice.write_bytes(b"not an archive")
        else:
            np.savez(voice, **content)
        result = run("say", "hello", "-o", tmp_path / "out.wav", "--model", checkpoint, "--voice", voice)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_say_warns_of_a_text_that_is_cut(checkpoint, tmp_path):
    text = "word " * 300
    result = run("say", text, "-o", tmp_path / "out.wav", "--model", checkpoint, "--max-seconds", 0.1)
    assert result.exit_code == 0, result.output
    assert "300 tokens and Bark reads 256" in result.output
