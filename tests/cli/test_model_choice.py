"""Which model, where and in what precision: `--model`, `--device`, `--dtype`, `--weights`."""

from __future__ import annotations

import pytest
import soundfile
import torch
from support.bark_models import SUNO, build
from support.command import run

import bark_accel
from bark_accel.cli import speech

CHOICES = [(), ("--weights", "int8"), ("--weights", "float16"), ("--dtype", "bfloat16"), ("--device", "cpu")]


@pytest.mark.parametrize("command", ["say", "stream", "read"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(choice) or "as it is")
def test_the_model_is_what_was_asked_for(tmp_path, monkeypatch, command, choice):
    (tmp_path / "a.txt").write_text("hello")
    models = []
    accelerate = speech.accelerate_bark
    monkeypatch.setattr(speech, "accelerate_bark", lambda model, **k: models.append(accelerate(model, **k)))
    what = {"say": ("say", "hello"), "stream": ("say", "hello", "--stream"), "read": ("read", tmp_path / "a.txt")}
    result = run(*what[command], "-o", tmp_path / "a.wav", "--max-seconds", 0.4, *choice)
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "a.wav").frames > 0
    options = dict([choice] if choice else [])
    (model,) = models
    stage = bark_accel.acceleration_report(model).stages[0]
    assert stage.dtype == options.get("--dtype", "float32") and stage.device == "cpu"
    assert stage.weights == options.get("--weights", stage.dtype)


@pytest.mark.parametrize("command", ["say", "read"])
def test_approximations_are_those_that_were_asked_for(tmp_path, monkeypatch, command):
    (tmp_path / "a.txt").write_text("hello")
    given = []
    accelerate = speech.accelerate_bark
    monkeypatch.setattr(speech, "accelerate_bark", lambda model, **k: given.append(k) or accelerate(model, **k))
    text = "hello" if command == "say" else tmp_path / "a.txt"
    options = ("--max-seconds", 0.4, "--fit-windows", "--long-coarse-windows", "--kv-cache-dtype", "int8")
    result = run(command, text, "-o", tmp_path / "a.wav", *options)
    assert result.exit_code == 0, result.output
    windows = {"fit_windows": True, "long_coarse_windows": True}
    assert given == [{"weights": "same", "kv_cache_dtype": "int8", **windows}]


@pytest.mark.parametrize("command", ["say", "read"])
@pytest.mark.parametrize(
    "choice, message",
    [
        (("--weights", "int4"), "--weights: expected one of same, float16, bfloat16, int8, w8a8, got int4"),
        (("--dtype", "float64"), "--dtype: expected one of float32, float16, bfloat16, got float64"),
        (("--device", "tpu"), "--device: expected cpu, cuda or another one of this machine, got tpu ("),
        (("--device", "meta"), "--device: expected cpu, cuda or another one of this machine, got meta ("),
        (("--model", "/no/such/dir"), "model: expected a folder or a model id of the Hub, got '/no/such/dir': no such"),
        (("--model", "./none"), "got './none': no such folder"),
        (("--model", "a/b/c"), "got 'a/b/c': no such folder"),
        (("--model", ""), "got '': no such folder"),
        (("--model", __file__), "model: expected the folder of a checkpoint, got the file"),
    ],
)
def test_a_choice_that_cannot_be_is_explained(tmp_path, command, choice, message):
    (tmp_path / "a.txt").write_text("hello")
    text = "hello" if command == "say" else tmp_path / "a.txt"
    result = run(command, text, "-o", tmp_path / "a.wav", *choice)
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    assert message in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_explained(tmp_path):
    result = run("say", "hello", "-o", tmp_path / "a.wav", "--device", "cuda")
    assert result.exit_code == 2 and "got cuda (" in result.output and result.output.count("\n") == 1


def test_a_voice_of_another_model_is_explained(tmp_path):
    """Its codes are seen only when the model generates."""
    build(SUNO).save_pretrained(tmp_path / "model")
    voice = bark_accel.small_bark_path() / "speaker_embeddings" / "rms.npz"
    options = ("-o", tmp_path / "a.wav", "--model", tmp_path / "model", "--voice", voice)
    result = run("say", "hello", *options)
    assert result.exit_code == 2 and "fine_prompt" in result.output, result.output


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_weights_that_overflow_are_explained(tmp_path, stream):
    model = build(SUNO)
    torch.nn.init.constant_(model.semantic.lm_head.weight, torch.nan)
    model.save_pretrained(tmp_path / "model")
    result = run("say", "hello", "-o", tmp_path / "a.wav", "--model", tmp_path / "model", *stream)
    assert result.exit_code == 2 and "NaN" in result.output and not (tmp_path / "a.wav").exists()
