"""Where weights come from: suno's own files, the Hub's models, devices and switches of the environment."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from support.bark_models import SUNO, build
from support.suno_package import Letters, random_models, save

import bark_accel.suno.generation as ours
import bark_accel.suno.models as models
from bark_accel import accelerate_bark
from bark_accel.hf import suno_hub
from bark_accel.hf.suno_checkpoint import load_suno_stage
from bark_accel.suno.sources import checkpoint_path


@pytest.fixture(autouse=True)
def nothing_loaded(tmp_path, monkeypatch):
    """An empty cache folder, and no Hub."""

    def no_hub(*names):
        raise OSError(f"no network\nfor {names}")

    for name in ("load_model", "load_processor", "load_codec", "load_tokenizer"):
        monkeypatch.setattr(suno_hub, name, no_hub)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for switch in ("SUNO_USE_SMALL_MODELS", "SUNO_OFFLOAD_CPU", "SUNO_ENABLE_MPS"):
        monkeypatch.delenv(switch, raising=False)
    ours.clean_models()
    yield
    ours.clean_models()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stage", ["text", "coarse", "fine"])
def test_logits_are_those_of_sunos_classes(suno, tmp_path, stage, bias):
    expected = random_models(bias)[stage]
    expected = expected["model"] if stage == "text" else expected
    save(tmp_path / "stage.pt", expected)
    model = load_suno_stage(tmp_path / "stage.pt", stage)
    with torch.no_grad():
        if stage == "fine":
            codes = torch.randint(0, 1024, (1, 20, 8))
            torch.testing.assert_close(model(5, codes).logits, expected(5, codes), rtol=0, atol=1e-5)
        else:
            ids = torch.randint(0, 10_000, (1, 20))
            torch.testing.assert_close(model(ids).logits[:, -1:], expected(ids)[0], rtol=0, atol=1e-5)
    assert not model.training


def test_one_vocabulary_for_ids_and_logits(suno, tmp_path):
    model = random_models()["coarse"]
    arguments = {k: v for k, v in vars(model.config).items() if not k.endswith("vocab_size")}
    save(tmp_path / "coarse.pt", model, model_args={**arguments, "vocab_size": 12_096})
    loaded = load_suno_stage(tmp_path / "coarse.pt", "coarse")
    assert loaded.config.input_vocab_size == loaded.config.output_vocab_size == 12_096


class Planted:
    """Runs a command when it is unpickled by a loader that executes what a file says."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(suno, tmp_path):
    save(tmp_path / "text.pt", random_models()["text"]["model"], planted=Planted(tmp_path / "planted"))
    with pytest.raises(ValueError, match="expected a checkpoint of tensors and numbers"):
        load_suno_stage(tmp_path / "text.pt", "text")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": 3}, "expected the keys model and model_args of suno's checkpoints"),
        ({"model_args": {"n_layer": 2}}, "expected model_args among n_layer, n_head"),
        ({"model_args": {"n_layer": 2, "n_head": 2, "n_embd": 16}}, "expected the weights of a BarkCoarseModel"),
        ({"model": {}}, "expected the weights of a BarkCoarseModel; .* expected shape .*, got none"),
    ],
)
def test_files_that_are_no_checkpoints(suno, tmp_path, changes, message):
    save(tmp_path / "coarse.pt", random_models()["coarse"], **changes)
    with pytest.raises(ValueError, match=message):
        load_suno_stage(tmp_path / "coarse.pt", "coarse")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt: expected a checkpoint of tensors and numbers"):
        load_suno_stage(tmp_path / "text.pt", "text")


def test_no_weights_are_one_clear_error(tmp_path):
    for call in (ours.preload_models, lambda: ours.generate_text_semantic("one"), lambda: ours.load_model()):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        message = str(caught.value)
        assert str(tmp_path / "suno" / "bark_v0" / "text_2.pt") in message and "suno/bark" in message
        assert "(no network)" in message and "use_model" in message
    assert not ours.LOADED


@pytest.fixture
def hub(monkeypatch):
    """The Hub has random models; the sizes that were asked for."""
    asked = []

    def load(name):
        asked.append(name)
        return build(SUNO, seed=len(asked))

    class Processor:
        tokenizer = Letters()

    monkeypatch.setattr(suno_hub, "load_model", load)
    monkeypatch.setattr(suno_hub, "load_processor", lambda name: Processor())
    return asked


def test_models_of_the_hub(hub):
    ours.preload_models(coarse_use_small=True)
    assert hub == ["suno/bark", "suno/bark-small"]
    ours.preload_models()
    assert len(hub) == 2, "what is loaded is not loaded again"
    tokens = ours.generate_text_semantic("Hello", silent=True, max_gen_duration_s=0.5)
    assert ours.generate_coarse(tokens, silent=True).shape[0] == 2
    ours.preload_models(force_reload=True, text_use_small=True, coarse_use_small=True, fine_use_small=True)
    assert hub[2:] == ["suno/bark-small"]


def test_small_models_by_the_environment(hub, monkeypatch):
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "True")
    ours.preload_models()
    assert hub == ["suno/bark-small"]
    assert checkpoint_path("text", small=True).name == "text.pt"


def test_sunos_files_come_before_the_hub(suno, hub, monkeypatch):
    save(checkpoint_path("coarse", small=False), random_models()["coarse"])
    ours.preload_models()
    assert ours.LOADED["coarse"].patch.module.config.num_layers == 2
    weight = ours.load_model(model_type="coarse").lm_head.weight
    assert torch.equal(weight, random_models()["coarse"].lm_head.weight)
    ours.clean_models("coarse")
    assert ours.LOADED.keys() == {"text", "fine", "codec"}


def test_load_model_returns_what_sunos_does(hub, monkeypatch):
    text = ours.load_model(model_type="text")
    assert text.keys() == {"model", "tokenizer"} and text["model"] is ours.LOADED["text"].patch.module
    monkeypatch.setattr(suno_hub, "load_codec", lambda: build(SUNO).codec_model)
    assert ours.load_codec_model() is ours.LOADED["codec"].patch.module
    with pytest.raises(ValueError, match="model_type: expected 'text', 'coarse' or 'fine', got 'codec'"):
        ours.load_model(model_type="codec")


def test_smaller_weights(hub):
    ours.preload_models(weights="int8")
    assert ours.LOADED["fine"].patch.settings.precision == "int8"
    with pytest.raises(ValueError, match="weights: expected None or one of"):
        ours.preload_models(weights="int4")


def test_an_accelerated_model_keeps_its_settings():
    model = accelerate_bark(build(SUNO), weights="float16")
    models.use_model(model, type("Processor", (), {"tokenizer": Letters()})())
    assert ours.LOADED["coarse"].patch is model.coarse_acoustics.generate.__self__
    assert ours.LOADED["coarse"].patch.settings.precision == "float16"
    before = copy.copy(vars(model.semantic))
    ours.generate_text_semantic("one", silent=True, max_gen_duration_s=0.2)
    assert vars(model.semantic) == before


def test_stages_wait_on_the_cpu(hub, monkeypatch):
    """The device of the test is the CPU under another name, since there is no other one."""
    moves = []
    monkeypatch.setenv("SUNO_OFFLOAD_CPU", "1")
    ours.preload_models()
    stage = ours.LOADED["coarse"]
    assert not stage.offloaded
    stage.offloaded = True
    monkeypatch.setattr(type(stage.patch.module), "to", lambda module, device: moves.append(str(device)))
    with stage.on_duty():
        assert moves == ["cpu"]
    assert moves == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "use_gpu, gpus, mps, with_mps, expected",
    [
        (True, 1, False, True, "cuda"),
        (False, 1, False, True, "cpu"),
        (True, 0, True, True, "mps"),
        (True, 0, True, False, "cpu"),
        (True, 0, False, True, "cpu"),
    ],
)
def test_devices(monkeypatch, use_gpu, gpus, mps, with_mps, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("SUNO_ENABLE_MPS", str(mps))
    assert models._device(use_gpu, with_mps).type == expected
